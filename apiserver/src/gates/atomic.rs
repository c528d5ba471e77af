//! Which CSI drivers cut a volume as of one instant. Of the others nobody knows what a copy holds, however still the database was
//! held: a driver that copies files copies the first before the last.

use api::gate;

/// Drivers whose snapshot of one volume is as of one instant, by what their manuals say of the storage below. Group snapshots are of
/// one instant for all members only where the driver's entry says so.
const ATOMIC: [Driver; 14] = [
    // "Point-in-time" snapshots of block storage (EBS user guide, "Amazon EBS snapshots").
    Driver { name: "ebs.csi.aws.com", group: false },
    // Incremental, point-in-time (Compute Engine documentation, "About disk snapshots").
    Driver { name: "pd.csi.storage.gke.io", group: false },
    // A full, point-in-time copy of a managed disk (Azure documentation, "Create a snapshot of a virtual hard disk").
    Driver { name: "disk.csi.azure.com", group: false },
    // RBD: a snapshot is of one instant; groups of images are, too (Ceph documentation, "Snapshots" and rbd(8) `group snap`).
    Driver { name: "rbd.csi.ceph.com", group: true },
    Driver { name: "rook-ceph.rbd.csi.ceph.com", group: true },
    // Snapshots are a volume's chain of layers (Longhorn documentation, "Concepts"); of a group each is cut for itself.
    Driver { name: "driver.longhorn.io", group: false },
    // Thin LVM snapshots are made by the device mapper with the origin suspended (lvmthin(7)).
    Driver { name: "topolvm.io", group: false },
    Driver { name: "local.csi.openebs.io", group: false },
    // zfs-snapshot(8): taken atomically.
    Driver { name: "zfs.csi.openebs.io", group: false },
    Driver { name: "org.democratic-csi.zfs-generic-iscsi", group: false },
    // DRBD over LVM thin or ZFS; of several volumes of a resource at one instant (LINSTOR user's guide, "Working with snapshots").
    Driver { name: "linstor.csi.linbit.com", group: false },
    // Block storage of the cloud (OpenStack documentation, "Manage volumes").
    Driver { name: "cinder.csi.openstack.org", group: false },
    // "Point-in-time" (DigitalOcean documentation, "Volume snapshots").
    Driver { name: "dobs.csi.digitalocean.com", group: false },
    // ONTAP: copy-on-write of a whole volume (NetApp documentation, "Snapshot copies").
    Driver { name: "csi.trident.netapp.io", group: false },
];

struct Driver {
    name: &'static str,
    group: bool,
}

/// Whether whatever was cut together was cut at one instant; `class`: what the class says of itself.
pub(super) fn is_atomic(driver: &str, group: gate::Group, class: Option<&str>) -> bool {
    match class {
        Some("true") => true,
        Some("false") => false,
        // Whatever else somebody wrote there is no word for it.
        _ => ATOMIC.iter().any(|known| known.name == driver && (group == gate::Group::Single || known.group)),
    }
}

#[cfg(test)]
mod tests {
    use gate::Group;

    use super::*;

    #[test]
    fn the_class_has_the_last_word_and_who_is_not_known_is_not_trusted() {
        for (driver, group, class, atomic) in [
            ("ebs.csi.aws.com", Group::Single, None, true),
            ("ebs.csi.aws.com", Group::Group, None, false),
            ("rbd.csi.ceph.com", Group::Group, None, true),
            ("hostpath.csi.k8s.io", Group::Single, None, false),
            ("hostpath.csi.k8s.io", Group::Group, Some("true"), true),
            ("ebs.csi.aws.com", Group::Single, Some("false"), false),
            ("nfs.csi.k8s.io", Group::Single, Some("yes"), false),
        ] {
            assert_eq!(is_atomic(driver, group, class), atomic, "{driver} {group:?} {class:?}");
        }
    }
}
