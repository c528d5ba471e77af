//! A Pod, or the template of one, as JSON: read field by field, so that nothing has to be known of the rest.

use serde_json::Value;

/// What the kubelet makes for a static Pod: it runs already, and whoever changes it has it deleted and made again (kubelet
/// `pkg/kubelet/types`, ConfigMirrorAnnotationKey).
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";

#[derive(Clone, Copy, Debug)]
pub(super) struct Pod<'a>(pub(super) &'a Value);

#[derive(Clone, Copy, Debug)]
pub(super) struct Container<'a>(pub(super) &'a Value);

impl<'a> Pod<'a> {
    /// Whether everything that is read or added to is of the type that it should be.
    pub(super) fn is_well_formed(self) -> bool {
        let at = |pointer: &str| self.0.pointer(pointer).unwrap_or(&Value::Null);
        let maps = ["/metadata", "/metadata/labels", "/metadata/annotations"];
        let lists = ["/spec/initContainers", "/spec/volumes", "/spec/ephemeralContainers"];
        let is_list_of_maps = |list: &Value| list.as_array().is_some_and(|items| items.iter().all(Value::is_object));
        at("/spec").is_object()
            && maps.iter().all(|pointer| at(pointer).is_object() || at(pointer).is_null())
            && lists.iter().all(|pointer| at(pointer).is_null() || is_list_of_maps(at(pointer)))
            && is_list_of_maps(at("/spec/containers"))
            && at("/spec/containers").get(0).is_some()
            && self.all().all(|container| {
                let mounts = &container.0["volumeMounts"];
                mounts.is_null() || is_list_of_maps(mounts)
            })
    }

    pub(super) fn label(self, key: &str) -> Option<&'a str> {
        self.0.pointer("/metadata/labels")?.get(key)?.as_str()
    }

    pub(super) fn annotation(self, key: &str) -> Option<&'a str> {
        self.0.pointer("/metadata/annotations")?.get(key)?.as_str()
    }

    /// Labels and annotations.
    pub(super) fn keys(self) -> impl Iterator<Item = &'a str> {
        let maps = ["/metadata/labels", "/metadata/annotations"].into_iter();
        maps.filter_map(move |pointer| self.0.pointer(pointer)?.as_object()).flatten().map(|(key, _)| key.as_str())
    }

    pub(super) fn text(self, pointer: &str) -> Option<&'a str> {
        self.0.pointer(pointer)?.as_str()
    }

    fn list(self, pointer: &str) -> impl Iterator<Item = Container<'a>> {
        self.0.pointer(pointer).and_then(Value::as_array).into_iter().flatten().map(Container)
    }

    pub(super) fn containers(self) -> impl Iterator<Item = Container<'a>> {
        self.list("/spec/containers")
    }

    pub(super) fn init_containers(self) -> impl Iterator<Item = Container<'a>> {
        self.list("/spec/initContainers")
    }

    /// Those that go on running: the containers, and the sidecars among the init containers.
    pub(super) fn running(self) -> impl Iterator<Item = Container<'a>> {
        self.containers().chain(self.init_containers().filter(|container| container.0["restartPolicy"] == "Always"))
    }

    /// Every one whose name nobody else may have.
    pub(super) fn all(self) -> impl Iterator<Item = Container<'a>> {
        self.containers().chain(self.init_containers()).chain(self.list("/spec/ephemeralContainers"))
    }

    pub(super) fn volumes(self) -> impl Iterator<Item = &'a Value> {
        self.0.pointer("/spec/volumes").and_then(Value::as_array).into_iter().flatten()
    }

    /// A number of the container's security context, or else of the Pod's.
    pub(super) fn security(self, container: Container<'a>, key: &str) -> Option<i64> {
        let of = |value: &Value| value.get("securityContext")?.get(key)?.as_i64();
        of(container.0).or_else(|| of(self.0.get("spec")?))
    }
}

impl<'a> Container<'a> {
    pub(super) fn name(self) -> &'a str {
        self.0["name"].as_str().unwrap_or_default()
    }

    pub(super) fn image(self) -> &'a str {
        self.0["image"].as_str().unwrap_or_default()
    }

    /// The TCP ports that it declares, with their names.
    pub(super) fn ports(self) -> impl Iterator<Item = (u16, &'a str)> {
        let ports = self.0["ports"].as_array().into_iter().flatten();
        ports.filter(|port| port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP")).filter_map(|port| {
            let number = u16::try_from(port["containerPort"].as_u64()?).ok()?;
            Some((number, port["name"].as_str().unwrap_or_default()))
        })
    }

    pub(super) fn mounts(self) -> impl Iterator<Item = Mount<'a>> {
        let mounts = self.0["volumeMounts"].as_array().into_iter().flatten();
        mounts.filter_map(|mount| {
            Some(Mount { volume: mount["name"].as_str()?, path: mount["mountPath"].as_str()?, whole: mount })
        })
    }

    /// The volumes that it has as devices.
    pub(super) fn devices(self) -> impl Iterator<Item = &'a str> {
        let devices = self.0["volumeDevices"].as_array().into_iter().flatten();
        devices.filter_map(|device| device["name"].as_str())
    }

    /// Whether it is an agent that was injected: its token is where nobody else's is.
    pub(super) fn is_agent(self) -> bool {
        self.name() == super::CONTAINER && self.mounts().any(|mount| mount.path == super::TOKEN_DIRECTORY)
    }
}

/// One `volumeMounts` of a container.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mount<'a> {
    pub(super) volume: &'a str,
    pub(super) path: &'a str,
    /// All of it.
    pub(super) whole: &'a Value,
}
