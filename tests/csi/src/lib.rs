//! A CSI driver for the tests of what happens around a snapshot. It is a test tool, and does for real what it is asked: a
//! volume is an ext4 file system in an image file, mounted over a loop device, and a snapshot is a reflink of that file.
//!
//! So a snapshot is what a block storage's is: atomic, with all that had reached the device and nothing of the page cache
//! above it; of several volumes it is of one instant for all. What sets the driver apart from one for users is [`Control`]: it is slow, fails and lies when it is told to.

mod control;
mod controller;
mod faults;
mod group_controller;
mod identity;
mod mounts;
mod node;
mod pool;
mod serve;

pub use control::Control;
pub use proto::control::{Call, Fault};
pub use serve::{Settings, serve};

/// By which Kubernetes knows it.
pub const NAME: &str = "csi.stillpoint.test";

/// Generated from proto/.
mod proto {
    #[expect(clippy::all, clippy::pedantic, clippy::allow_attributes, unused_qualifications, reason = "generated")]
    pub(crate) mod csi {
        tonic::include_proto!("csi.v1");
    }

    #[expect(clippy::pedantic, clippy::allow_attributes, unused_qualifications, reason = "generated")]
    pub(crate) mod registration {
        tonic::include_proto!("pluginregistration");
    }

    #[expect(clippy::pedantic, clippy::allow_attributes, unused_qualifications, reason = "generated")]
    pub mod control {
        tonic::include_proto!("control");
    }
}
