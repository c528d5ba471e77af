//! `stillpoint-webhooks`: the admission side. Every snapshot of a cluster passes here, so it is small, watches nothing, and is
//! never in the way of what it does not know.
//!
//! ```text
//! args ─► Server ─► app ─► review ─► decide ─┬─► allowed
//!                                            ├─► own_kinds ─► api::validate
//!                                            ├─► inject ─► api::inject
//!                                            └─► gates ─► forward ─► the apiserver's gate port
//! ```
//! From `review` to `gates` all is pure: an AdmissionReview's bytes go in, and what is to be done comes out.

pub mod answer;
mod app;
mod args;
pub mod connection;
pub mod credentials;
mod deadline;
pub mod decide;
pub mod decision;
pub mod forward;
pub(crate) mod gates;
mod inject;
mod metrics;
pub mod ours;
mod own_kinds;
pub mod review;
mod room;
pub mod server;
pub mod unanswered;

pub use args::Args;
