//! A real Kubernetes for the tests: etcd, kube-apiserver, kube-controller-manager and kube-scheduler, built from their Go
//! modules (`tests/tools/kubernetes`) and run as processes of this machine; with a [`Node`], if one is asked for, that runs
//! Pods and has storage with snapshots.
//!
//! A [`Cluster`] lives in a temporary directory on ports of its own and ends with its owner, however that ends. The binary
//! of this package starts one that stays (`make cluster`). With `KUBECONFIG_UNDER_TEST` the tests use a cluster that is
//! there; what then cannot be had says so.
//!
//! What a server under test has to know of it:
//! - kube-apiserver reaches it by [`Cluster::register_service`]: an address of this host that is not loopback, which
//!   EndpointSlices refuse.
//! - Without a node a Service's ClusterIP leads nowhere, for there is no kube-proxy. [`Options::aggregator_routing`] says who minds, and
//!   what can be done.
//! - An APIService that is not available holds up the deletion of every namespace, in every test that shares the cluster:
//!   delete it before its server.
//! - The administrator is of `system:masters`, whom kube-apiserver never asks RBAC about. Test rights as somebody else
//!   ([`Identity`]).

mod address;
mod binaries;
mod cgroups;
mod cluster;
mod components;
mod control_plane;
mod daemon;
mod identity;
mod kubectl;
mod machine;
mod node;
mod own;
mod pki;
mod process;
mod service;
mod storage;
mod wait;
pub mod workload;

pub use binaries::image;
pub use binaries::tool;
pub use cluster::{Cluster, Options};
pub use components::Component;
pub use daemon::{Up, down, up};
pub use identity::Identity;
pub use kubectl::Output;
pub use node::Node;
pub use process::group_members;
pub use service::ServicePort;
pub use wait::until;
