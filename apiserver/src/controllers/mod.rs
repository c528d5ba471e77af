//! The loops: observe → decide (pure) → act. Each is a task of the server's; the death of one ends the server.

pub mod database;
pub mod events;
pub mod freeze;
pub mod housekeeping;
mod turns;

pub(crate) use turns::Turns;

use std::{collections::VecDeque, marker::PhantomData};

use serde::de::DeserializeOwned;

use crate::{
    registry::Registry,
    resources::Resource,
    store::{Change, Stored, Watch},
};

/// Everything of a kind, and every change of it; begun anew when its watch falls behind.
pub(crate) struct Observed<T> {
    registry: Registry,
    resource: &'static Resource,
    listed: VecDeque<Stored>,
    watch: Option<Watch>,
    kind: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Observed<T> {
    pub(crate) fn new(registry: Registry, resource: &'static Resource) -> Self {
        Self { registry, resource, listed: VecDeque::new(), watch: None, kind: PhantomData }
    }

    /// The next object, and whether it is gone. `None`: the kind cannot be watched. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Option<(T, bool)> {
        loop {
            let (stored, gone) = match (self.listed.pop_front(), &mut self.watch) {
                (Some(stored), _) => (stored, false),
                (None, Some(watch)) => match watch.next().await {
                    Some(event) => (event.object.clone(), event.change == Change::Deleted),
                    None => {
                        self.watch = None;
                        continue;
                    }
                },
                (None, None) => {
                    let (page, watch) = self.registry.list_and_watch(self.resource, None).ok()?;
                    self.listed = page.items.into_iter().map(|(_, stored)| stored).collect();
                    self.watch = Some(watch);
                    continue;
                }
            };
            if let Ok(object) = serde_json::from_slice(&stored.bytes) {
                return Some((object, gone));
            }
        }
    }
}
