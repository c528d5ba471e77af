//! Servers of this host as Services of the cluster.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use k8s_openapi::api::{
    core::v1::{Namespace, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

/// A port of a Service, and who answers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: String,
    pub port: u16,
    /// Ports of this host, one for each replica.
    pub targets: Vec<u16>,
}

impl ServicePort {
    /// The port of an aggregated API or a webhook.
    pub fn https(targets: &[u16]) -> Self {
        Self { name: "https".to_owned(), port: 443, targets: targets.to_owned() }
    }
}

/// Makes or changes the Service, and one EndpointSlice for each replica: ports are a slice's, not an address's, and all
/// replicas have the same address. Answers the ClusterIP.
pub(crate) async fn register(
    client: Client,
    address: Ipv4Addr,
    namespace: &str,
    name: &str,
    ports: &[ServicePort],
) -> Result<IpAddr> {
    let apply = PatchParams::apply("tests").force();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    if namespaces.get_opt(namespace).await?.is_none() {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        namespaces.patch(namespace, &apply, &Patch::Apply(object)).await?;
    }
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let made = services.patch(name, &apply, &Patch::Apply(service(name, ports))).await.context("the Service")?;

    let slices: Api<EndpointSlice> = Api::namespaced(client, namespace);
    let replicas = ports.iter().map(|port| port.targets.len()).max().unwrap_or_default();
    let wanted: Vec<String> = (0..replicas).map(|replica| format!("{name}-{replica}")).collect();
    for (replica, slice) in wanted.iter().enumerate() {
        let object = endpoints(slice, name, address, ports, replica);
        slices.patch(slice, &apply, &Patch::Apply(object)).await.context("the EndpointSlice")?;
    }
    for slice in slices.list(&ListParams::default().labels(&format!("{SERVICE_NAME}={name}"))).await? {
        let slice = slice.metadata.name.unwrap_or_default();
        if !wanted.contains(&slice) {
            slices.delete(&slice, &DeleteParams::default()).await?;
        }
    }
    Ok(made.spec.and_then(|spec| spec.cluster_ip).context("the Service has no ClusterIP")?.parse()?)
}

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Without a selector: the cluster's own controller keeps its hands off.
fn service(name: &str, ports: &[ServicePort]) -> Value {
    let ports: Vec<_> = ports.iter().map(|port| json!({"name": port.name, "port": port.port})).collect();
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": ports}})
}

fn endpoints(slice: &str, service: &str, address: Ipv4Addr, ports: &[ServicePort], replica: usize) -> Value {
    let ports = ports.iter().filter_map(|port| Some((&port.name, port.targets.get(replica)?)));
    let ports: Vec<_> = ports.map(|(name, target)| json!({"name": name, "port": target})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": slice, "labels": {
            SERVICE_NAME: service, "endpointslice.kubernetes.io/managed-by": "tests",
        }},
        "addressType": "IPv4", "ports": ports,
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
    })
}
