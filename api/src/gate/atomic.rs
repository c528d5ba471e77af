//! Which CSI drivers cut a volume as of one instant. Of the others nobody knows what a copy holds, however still the database was
//! held: a driver that copies files copies the first before the last.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Group;

/// Drivers whose snapshot of one volume is as of one instant, by what their manuals say of the storage below; and whether that of a
/// group is of one instant for all its members.
///
/// Not here are drivers whose name does not say whose storage it is (`csi.hpe.com`, `org.democratic-csi.*`), and those of files.
const ATOMIC: [Driver; 17] = [
    // "Point-in-time" snapshots of block storage (EBS user guide, "Amazon EBS snapshots"); in EKS Auto Mode by another name (EKS
    // user guide, "Create a storage class").
    single("ebs.csi.aws.com"),
    single("ebs.csi.eks.amazonaws.com"),
    // Incremental, point-in-time (Compute Engine documentation, "About disk snapshots").
    single("pd.csi.storage.gke.io"),
    // A full, point-in-time copy of a managed disk (Azure documentation, "Create a snapshot of a virtual hard disk").
    single("disk.csi.azure.com"),
    // Of First Class Disks only (vsphere-csi-driver `docs/book/features/volume_snapshot.md`): the disk as it was when it was taken
    // (vSphere documentation, "Using Snapshots To Manage Virtual Machines").
    single("csi.vsphere.vmware.com"),
    // Instant: writes are frozen at a point in time (DigitalOcean documentation, "How to Create Snapshots of Volumes").
    single("dobs.csi.digitalocean.com"),
    // A point-in-time copy of a volume, whatever is below (OpenStack documentation, "Manage volumes").
    single("cinder.csi.openstack.org"),
    // RBD: the state of an image at one instant (Ceph documentation, "Snapshots"). Rook puts the namespace of its operator before it,
    // or what it is told (Rook documentation, "Ceph CSI Drivers"). A group is stopped as a whole only where each image has the feature
    // exclusive-lock (ceph `src/librbd/api/Group.cc`), which a StorageClass may leave out: a class has to say it of its groups.
    Driver { name: "rbd.csi.ceph.com", prefixed: true, groups: false },
    // Snapshots are a volume's chain of layers (Longhorn documentation, "Concepts"); of a group each is cut for itself ("Create a
    // Snapshot Group").
    single("driver.longhorn.io"),
    // As of a point in time, the same in all replicas (OpenEBS documentation, "Volume Snapshots" of Replicated PV Mayastor).
    single("io.openebs.csi-mayastor"),
    // LVM, thin or thick: the device mapper makes them while the origin is suspended (lvmthin(7), lvcreate(8)). TopoLVM had another
    // name before (topolvm `constants.go`).
    single("topolvm.io"),
    single("topolvm.cybozu.com"),
    single("local.csi.openebs.io"),
    // zfs-snapshot(8): taken atomically.
    single("zfs.csi.openebs.io"),
    // DRBD over LVM or ZFS, of which all replicas are suspended; groups are cut at the same point in time (LINBIT, "Using Volume Group
    // Snapshots with LINSTOR in Kubernetes", from operator 2.10 on, before which there are none).
    groups("linstor.csi.linbit.com"),
    // ONTAP: of a whole volume, or a clone of a LUN (Trident documentation, "Snapshots"); groups are cut at the same point in time
    // ("Work with Trident volume group snapshots").
    groups("csi.trident.netapp.io"),
    // Local snapshots are point-in-time copies (Portworx documentation, "Local Snapshots").
    single("pxd.portworx.com"),
];

struct Driver {
    name: &'static str,
    /// Installations put a word of their own before it, with a dot.
    prefixed: bool,
    groups: bool,
}

const fn single(name: &'static str) -> Driver {
    Driver { name, prefixed: false, groups: false }
}

const fn groups(name: &'static str) -> Driver {
    Driver { name, prefixed: false, groups: true }
}

impl Driver {
    fn is(&self, driver: &str) -> bool {
        let prefix = driver.strip_suffix(self.name);
        prefix.is_some_and(|prefix| prefix.is_empty() || (self.prefixed && prefix.len() > 1 && prefix.ends_with('.')))
    }
}

/// A class's own word for whether its driver cuts as of one instant: a label, or an annotation.
pub fn said_by_class(class: &ObjectMeta) -> Option<&str> {
    let said = [&class.labels, &class.annotations];
    said.into_iter().find_map(|all| all.as_ref()?.get(super::ATOMIC)).map(String::as_str)
}

/// Whether whatever was cut together was cut at one instant; `class`: what the class says of itself.
pub fn is_atomic(driver: &str, group: Group, class: Option<&str>) -> bool {
    match class {
        Some("true") => true,
        Some("false") => false,
        // Whatever else somebody wrote there is no word for it.
        _ => ATOMIC.iter().any(|known| known.is(driver) && (group == Group::Single || known.groups)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_has_the_last_word_and_who_is_not_known_is_not_trusted() {
        for (driver, group, class, atomic) in [
            ("ebs.csi.aws.com", Group::Single, None, true),
            ("ebs.csi.aws.com", Group::Group, None, false),
            ("csi.trident.netapp.io", Group::Group, None, true),
            ("rbd.csi.ceph.com", Group::Single, None, true),
            ("rook-ceph.rbd.csi.ceph.com", Group::Single, None, true),
            ("openshift-storage.rbd.csi.ceph.com", Group::Single, None, true),
            ("rook-ceph.rbd.csi.ceph.com", Group::Group, None, false),
            ("rook-ceph.rbd.csi.ceph.com", Group::Group, Some("true"), true),
            ("rook-ceph.cephfs.csi.ceph.com", Group::Single, None, false),
            ("notrbd.csi.ceph.com", Group::Single, None, false),
            (".rbd.csi.ceph.com", Group::Single, None, false),
            ("my.ebs.csi.aws.com", Group::Single, None, false),
            ("org.democratic-csi.nfs", Group::Single, None, false),
            ("hostpath.csi.k8s.io", Group::Single, None, false),
            ("hostpath.csi.k8s.io", Group::Group, Some("true"), true),
            ("ebs.csi.aws.com", Group::Single, Some("false"), false),
            ("nfs.csi.k8s.io", Group::Single, Some("yes"), false),
        ] {
            assert_eq!(is_atomic(driver, group, class), atomic, "{driver} {group:?} {class:?}");
        }
    }
}
