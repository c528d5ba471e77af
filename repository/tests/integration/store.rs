//! A real S3 server, with a proxy before it that has the faults of a store, and a repository in it.

use std::{sync::Mutex, time::Duration};

use fixtures::{FaultyS3, S3};
use repository::{Captured, Location, Patience, Place, ReadData, Repository, Result, S3Credentials};

use crate::{
    what::{capture, noise},
    world::{World, assert_restores, ids, line, restic, run, run_after},
};

/// Long enough for what answers.
pub(crate) const PATIENCE: Patience = Patience { request: Duration::from_millis(1500), call: Duration::from_secs(3) };

const PREFIX: &str = "dumps/shop";

/// An empty repository in a store, and in a directory where it has a companion.
pub(crate) struct Store {
    pub(crate) world: World,
    pub(crate) server: Mutex<S3>,
    pub(crate) proxy: FaultyS3,
    /// The store as it is met, `s3`, and its companion, `disk`.
    pub(crate) locations: Vec<Location>,
}

/// A bucket, as it is reached at an endpoint.
pub(crate) fn bucket(server: &S3, endpoint: &str, prefix: &str) -> repository::S3 {
    repository::S3 {
        endpoint: Some(endpoint.to_owned()),
        region: Some(S3::REGION.to_owned()),
        bucket: server.bucket.to_owned(),
        prefix: prefix.to_owned(),
        path_style: true,
        credentials: Some(S3Credentials {
            access_key_id: server.access_key.clone(),
            secret_access_key: server.secret_key.clone(),
            session_token: None,
        }),
        ca: None,
    }
}

/// What is stored.
pub(crate) fn files() -> [(&'static str, Vec<u8>); 2] {
    [("orders/shop.dump", noise(11, 2 << 20)), ("orders/roles.sql", b"CREATE ROLE app;\n".to_vec())]
}

impl Store {
    pub(crate) fn alone() -> Self {
        Self::of(&[])
    }

    pub(crate) fn beside_a_directory() -> Self {
        Self::of(&["disk"])
    }

    fn of(companions: &[&str]) -> Self {
        let world = World::new();
        let (server, proxy) = world.runtime.block_on(async {
            let server = S3::plain().await.unwrap();
            let proxy = FaultyS3::before(&server).await.unwrap();
            (server, proxy)
        });
        let at = |endpoint: &str| Place::S3(bucket(&server, endpoint, PREFIX));
        // Made behind the proxy's back, who counts.
        let behind = Location::new("s3", &at(&server.endpoint()), PATIENCE).unwrap();
        world.empty(if companions.is_empty() { &["made"] } else { companions }, &[behind]);
        let mut locations = vec![Location::new("s3", &at(&proxy.endpoint()), PATIENCE).unwrap()];
        locations.extend(companions.iter().map(|name| world.directory(name)));
        Self { world, server: Mutex::new(server), proxy, locations }
    }

    /// A run that meets a fault, held against what every run promises; and how many requests met it.
    pub(crate) fn meets(&self, fault: impl FnOnce(&FaultyS3)) -> (Result<Captured>, usize) {
        let outcome = self.outcome(fault);
        self.promised(&outcome);
        (outcome, self.proxy.met())
    }

    /// A run that meets a fault. The store is well then.
    pub(crate) fn outcome(&self, fault: impl FnOnce(&FaultyS3)) -> Result<Captured> {
        let repository = self.all();
        fault(&self.proxy);
        let outcome = repository.capture(&run("a"), capture(&files()));
        self.proxy.well();
        outcome
    }

    /// With every location.
    pub(crate) fn all(&self) -> Repository {
        self.world.by_key(&self.locations)
    }

    /// The store is well again: each location has what is said of it, and nothing else.
    pub(crate) fn promised(&self, outcome: &Result<Captured>) {
        self.promised_of(outcome, &files());
    }

    pub(crate) fn promised_of(&self, outcome: &Result<Captured>, files: &[(&str, Vec<u8>)]) {
        for location in &self.locations {
            let alone = self.world.by_key(std::slice::from_ref(location));
            match outcome {
                Ok(captured) if captured.whole.iter().any(|name| name == location.name()) => {
                    assert_restores(&alone, &captured.id, files);
                    assert!(captured.failed.iter().all(|error| error.location != location.name()));
                }
                Ok(captured) => {
                    assert!(captured.failed.iter().any(|error| error.location == location.name()), "{captured:?}");
                    assert!(!ids(&alone).contains(&captured.id), "{}", location.name());
                }
                Err(error) => assert_eq!(ids(&alone), [""; 0], "{}", line(error)),
            }
        }
    }

    /// What failed is given what it lacks, and is a location like any other.
    pub(crate) fn is_brought_up(&self, captured: &Captured) {
        let repository = self.all();
        for failed in &captured.failed {
            repository.replicate(&run_after("up", "a"), &captured.id, &failed.location).unwrap();
        }
        for location in &self.locations {
            assert_restores(&self.world.by_key(std::slice::from_ref(location)), &captured.id, &files());
            let findings = repository.check(location, ReadData::All).unwrap();
            assert!(findings.iter().all(|finding| !finding.is_error), "{findings:?}");
        }
        self.works();
    }

    /// A run stores everywhere.
    pub(crate) fn works(&self) {
        let captured = self.all().capture(&run("b"), capture(&files())).unwrap();
        assert!(captured.failed.is_empty(), "{captured:?}");
        self.promised(&Ok(captured));
    }

    /// As restic sees it, everywhere.
    pub(crate) fn is_clean(&self) {
        let directory = self.server.lock().unwrap().directory();
        restic(&directory.join(PREFIX), &["check", "--read-data"]).unwrap();
        if self.locations.len() > 1 {
            self.world.restic("disk", &["check", "--read-data"]).unwrap();
        }
    }
}
