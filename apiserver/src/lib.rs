//! `stillpoint-apiserver`: the verbs, the live views and, standalone, the stored kinds.
//!
//! ```text
//! args ─► Server ─► app (pipeline) ─► objects ─► registry ─► store        stored kinds
//!                                        └─────► verbs ─► freeze::Freezer  quiesce, unquiesce, renew
//!                   controllers ─► registry, verbs                         what was declared, and what people see
//! ```
//! ARCHITECTURE.md walks through a request.

mod admission;
mod agents;
mod aggregated;
mod answer;
mod app;
mod args;
mod asked;
pub mod auth;
mod body;
mod controllers;
mod copies;
mod csi_snapshots;
mod data_dir;
mod directory;
mod discovery;
mod documents;
mod error;
mod gates;
mod health;
mod indexed;
mod journal;
mod keyring;
mod meta;
mod metrics;
mod negotiate;
mod objects;
mod openapi;
mod own_account;
mod patch;
mod placing;
mod query;
mod records;
mod recovery;
mod registry;
mod replicas;
mod resources;
mod selector;
mod server;
mod shown;
mod standalone;
mod store;
mod table;
mod target;
mod targets;
mod verbs;
mod watching;

pub use args::Args;
pub use copies::RUNNER;
pub use server::Server;
pub use standalone::bind;
