//! What stands in a cluster, read once: the index that the server keeps by watches, made of lists.

use std::collections::{BTreeMap, BTreeSet};

use api::{
    Database,
    gate::{self, atomic},
    inject::{self, System},
};
use k8s_openapi::{
    api::{
        core::v1::{PersistentVolume, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    serde::de::DeserializeOwned,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams},
    core::NamespaceResourceScope,
};
use topology::{Index, claim_of};

/// All of it, of one namespace or of all.
pub struct Seen {
    pub index: Index,
    pub databases: Vec<Database>,
    pub pods: Vec<Running>,
    /// Whether PersistentVolumes could be read: else nothing is known of who stores what.
    pub volumes: bool,
    /// VolumeSnapshotClasses: their drivers, and their own word for whether these cut at one instant. None: nobody may read them.
    pub classes: Option<Vec<(String, Option<String>)>>,
}

/// A Pod that is not over.
#[derive(Clone, Debug)]
pub struct Running {
    pub namespace: String,
    pub name: String,
    /// What it looks like, and the claims that this is about.
    pub keeps: Vec<(System, BTreeSet<String>)>,
    /// The operator that holds its own databases for its own snapshots, as [`inject::OPERATORS`] has it.
    pub operator: Option<&'static str>,
    /// Whether it was given an agent when it asked for one; why not.
    pub asked: Option<Result<(), String>>,
}

/// How many objects are asked for at once.
const PAGE: u32 = 500;

impl Seen {
    /// `namespace`: none for all.
    pub async fn read(client: &Client, namespace: Option<&str>) -> Result<Self, kube::Error> {
        let (mut databases, mut pods) = (Vec::new(), Vec::new());
        each(all_of(client, namespace), |database: Database| databases.push(database)).await?;
        let mut index = Index::new(domain(&databases));
        each(all_of(client, namespace), |service: Service| index.put_service(&service)).await?;
        each(all_of(client, namespace), |slice: EndpointSlice| index.put_slice(&slice)).await?;
        each(all_of(client, namespace), |pod: Pod| {
            index.put_pod(&pod);
            pods.extend(Running::of(&pod));
        })
        .await?;
        let read = each(Api::all(client.clone()), |volume: PersistentVolume| index.put_volume(&volume)).await;
        let volumes = match read {
            Ok(()) => true,
            Err(kube::Error::Api(status)) if status.code == 403 => false,
            Err(error) => return Err(error),
        };
        Ok(Self { index, databases, pods, volumes, classes: classes(client).await? })
    }

    pub fn databases_by_namespace(&self) -> BTreeMap<String, Vec<&Database>> {
        let mut databases: BTreeMap<String, Vec<&Database>> = BTreeMap::new();
        for database in &self.databases {
            databases.entry(database.namespace().unwrap_or_default()).or_default().push(database);
        }
        databases
    }

    /// Whether a driver cuts a volume at one instant: by its classes, which have the last word, or by its name; none: that cannot be said.
    pub fn is_atomic(&self, driver: &str) -> Option<bool> {
        let said = |class: Option<&str>| atomic::is_atomic(driver, gate::Group::Single, class);
        let Some(classes) = &self.classes else { return said(None).then_some(true) };
        let mut of = classes.iter().filter(|(of, _)| of == driver).map(|(_, class)| class.as_deref()).peekable();
        Some(if of.peek().is_none() { said(None) } else { of.any(said) })
    }
}

impl Running {
    pub fn of(pod: &Pod) -> Option<Self> {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        if matches!(phase, "Succeeded" | "Failed") {
            return None;
        }
        let (namespace, name) = (pod.namespace()?, pod.name_any());
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref()).into_iter().flatten();
        let claims: Vec<(&str, String)> =
            volumes.filter_map(|volume| Some((volume.name.as_str(), claim_of(volume, &name)?))).collect();
        let value = serde_json::to_value(pod).unwrap_or_default();
        let of = |volumes: &[&str]| -> BTreeSet<String> {
            claims.iter().filter(|(volume, _)| volumes.contains(volume)).map(|(_, claim)| claim.clone()).collect()
        };
        let keeps = inject::looks(&value).iter().map(|looks| (looks.system, of(&looks.volumes))).collect();
        let annotations = pod.annotations();
        // One that goes is looked after by nobody any more.
        let asked = annotations.get(inject::STATUS).filter(|_| pod.meta().deletion_timestamp.is_none());
        let asked = asked.map(|status| match status.as_str() {
            inject::SKIPPED => Err(annotations.get(inject::MESSAGE).cloned().unwrap_or_default()),
            _ => Ok(()),
        });
        Some(Self { operator: inject::operator(&value), namespace, name, keeps, asked })
    }

    /// Why it got no agent.
    pub fn skipped(&self) -> Option<&str> {
        self.asked.as_ref()?.as_ref().err().map(String::as_str)
    }
}

/// What the names of the cluster end in: nobody outside of it is told, but Databases may say it. What most of them say; what most clusters
/// are called where none does.
fn domain(databases: &[Database]) -> String {
    let hosts = databases.iter().filter_map(|database| database.spec.endpoint.host.as_deref());
    let said = hosts.filter_map(|host| host.split_once(".svc.")).map(|(_, domain)| domain.trim_end_matches('.'));
    let mut counted: BTreeMap<&str, usize> = BTreeMap::new();
    said.for_each(|domain| *counted.entry(domain).or_default() += 1);
    counted.into_iter().max_by_key(|(_, count)| *count).map_or("cluster.local", |(domain, _)| domain).to_owned()
}

/// Where there are no snapshots, there are none.
async fn classes(client: &Client) -> Result<Option<Vec<(String, Option<String>)>>, kube::Error> {
    let kind = ApiResource {
        group: gate::SNAPSHOTS.to_owned(),
        version: "v1".to_owned(),
        api_version: format!("{}/v1", gate::SNAPSHOTS),
        kind: "VolumeSnapshotClass".to_owned(),
        plural: "volumesnapshotclasses".to_owned(),
    };
    let classes = match Api::<DynamicObject>::all_with(client.clone(), &kind).list(&ListParams::default()).await {
        Ok(classes) => classes,
        Err(kube::Error::Api(status)) if status.code == 403 => return Ok(None),
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Some(Vec::new())),
        Err(error) => return Err(error),
    };
    let classes = classes.items.iter().filter_map(|class| {
        let said = atomic::said_by_class(&class.metadata).map(str::to_owned);
        Some((class.data.get("driver")?.as_str()?.to_owned(), said))
    });
    Ok(Some(classes.collect()))
}

/// Of one namespace, or of all.
pub fn all_of<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Page by page, so that no more is in memory at once.
async fn each<K>(objects: Api<K>, mut seen: impl FnMut(K)) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let mut asked = ListParams::default().limit(PAGE);
    loop {
        let page = objects.list(&asked).await?;
        page.items.into_iter().for_each(&mut seen);
        match page.metadata.continue_.filter(|more| !more.is_empty()) {
            Some(more) => asked.continue_token = Some(more),
            None => return Ok(()),
        }
    }
}
