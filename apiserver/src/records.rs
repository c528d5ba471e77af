//! Databases and Freezes, wherever they are kept: in our own registry, or in the cluster's API server. What the verbs, the
//! freezer and the controllers know of storage is this.
//!
//! # Contract
//! Reads are from memory and may be behind by a watch's delay; `secret` asks each time, for a Secret is not kept in memory.
//! Writes are stored when they return. `write_status` replaces what the one writer of a Freeze's status wrote before;
//! `change_*` never loses what somebody else wrote meanwhile. What is not there is 404.

pub(crate) mod cluster;
mod mirror;
mod own;
mod readable;
mod told;

use std::{fmt, sync::Arc};

use api::{Database, DatabaseStatus, Freeze, FreezeStatus};
use async_trait::async_trait;
use freeze::FreezeName;
use futures::{future::BoxFuture, stream::BoxStream};
use k8s_openapi::api::core::v1::{Event, Secret};

pub use cluster::Cluster;
pub(crate) use mirror::Mirror;
pub(crate) use own::{changed, follow};

use crate::error::ApiError;

/// An object as it was found or changed, or as it was last when it is gone.
#[derive(Clone, Debug)]
pub enum Seen<T> {
    There(T),
    Gone(T),
}

/// Every object of a kind as it is found, then every change. Ends when the kind cannot be followed any more.
pub type Following<T> = BoxStream<'static, Seen<Arc<T>>>;

#[async_trait]
pub trait Records: fmt::Debug + Send + Sync {
    async fn database(&self, namespace: &str, name: &str) -> Result<Arc<Database>, ApiError>;
    /// Of one namespace, or of all.
    fn databases(&self, namespace: Option<&str>) -> Vec<Arc<Database>>;
    async fn freeze(&self, name: &FreezeName) -> Result<Arc<Freeze>, ApiError>;
    fn freezes(&self) -> Vec<Arc<Freeze>>;
    /// What a list made from memory is the state of.
    fn revision(&self) -> String;
    /// `None`: there is none. Any other error: it could not be asked, or we may not read it.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, ApiError>;

    fn follow_databases(&self) -> Following<Database>;
    fn follow_freezes(&self) -> Following<Freeze>;

    /// With its status.
    async fn create_freeze(&self, freeze: &Freeze) -> Result<(), ApiError>;
    async fn write_status(&self, name: &FreezeName, status: &FreezeStatus) -> Result<(), ApiError>;
    async fn change_freeze(&self, name: &FreezeName, change: Change<'_, FreezeStatus>) -> Result<(), ApiError>;
    async fn change_database(
        &self,
        namespace: &str,
        name: &str,
        change: Change<'_, DatabaseStatus>,
    ) -> Result<(), ApiError>;
    /// Keeps a declared Freeze that is about to hold something from going away before it is let go.
    async fn keep(&self, name: &FreezeName) -> Result<(), ApiError>;
    /// Who declared it, as far as storage itself knows: what an author can write says nothing.
    fn author(&self, freeze: &Freeze) -> Option<String>;
    /// Lets a Freeze go that is being deleted.
    async fn let_go(&self, name: &FreezeName) -> Result<(), ApiError>;
    async fn delete_freeze(&self, name: &FreezeName) -> Result<(), ApiError>;
    /// Each for itself; those that could not be written are only logged.
    async fn tell(&self, events: Vec<Event>);
    /// Ends when nothing can be kept or followed any more.
    fn lost(&self) -> BoxFuture<'static, ()>;
}

/// `None`: it is not stored yet.
pub(crate) fn freeze_name(freeze: &Freeze) -> Option<FreezeName> {
    Some(FreezeName { namespace: freeze.metadata.namespace.clone()?, name: freeze.metadata.name.clone()? })
}

/// In its namespace. `None`: it is not stored yet.
pub(crate) fn database_name(database: &Database) -> Option<(String, String)> {
    Some((database.metadata.namespace.clone()?, database.metadata.name.clone()?))
}

/// Applied to the newest status; again when somebody was faster. `None`: it is as it should be, and nothing is written.
pub type Change<'a, S> = &'a (dyn Fn(S) -> Option<S> + Send + Sync);
