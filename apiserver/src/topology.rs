//! What stands where in a cluster: whose data a volume holds, where Pods are, and what Namespaces say of their snapshots. Kept by
//! watches; gates read it before a cut, and agents are known by it.

mod index;
mod watched;

pub(crate) use index::{Asks, Holds, Index, Name};
pub(crate) use watched::Watched;
