//! What each part of the control plane is told.

use crate::components::{Component, Layout, text};

impl Layout {
    pub(crate) fn etcd(&self) -> Vec<String> {
        let clients = format!("http://127.0.0.1:{}", self.ports.etcd.number);
        let peers = format!("http://127.0.0.1:{}", self.ports.etcd_peers.number);
        let mut arguments = vec![
            format!("--data-dir={}", text(&self.file("etcd"))),
            "--name=only".to_owned(),
            format!("--listen-client-urls={clients}"),
            format!("--advertise-client-urls={clients}"),
            format!("--listen-peer-urls={peers}"),
            format!("--initial-advertise-peer-urls={peers}"),
            format!("--initial-cluster=only={peers}"),
            "--log-level=warn".to_owned(),
        ];
        if !self.options.fsync {
            arguments.push("--unsafe-no-fsync".to_owned());
        }
        arguments
    }

    pub(crate) fn apiserver(&self) -> Vec<String> {
        let pki = |name: &str| text(&self.pki(name));
        let mut arguments = vec![
            format!("--etcd-servers=http://127.0.0.1:{}", self.ports.etcd.number),
            // On all addresses: Pods and servers under test come by the host's.
            "--bind-address=0.0.0.0".to_owned(),
            format!("--secure-port={}", self.ports.apiserver.number),
            format!("--advertise-address={}", self.address),
            format!("--service-cluster-ip-range={}", self.service_range()),
            "--allow-privileged=true".to_owned(),
            // As kubeadm has it.
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            format!("--tls-cert-file={}", pki("apiserver.crt")),
            format!("--tls-private-key-file={}", pki("apiserver.key")),
            format!("--client-ca-file={}", pki("ca.crt")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-key-file={}", pki("service-accounts.pub")),
            format!("--service-account-signing-key-file={}", pki("service-accounts.key")),
            // The aggregation layer.
            format!("--requestheader-client-ca-file={}", pki("front-proxy-ca.crt")),
            "--requestheader-allowed-names=front-proxy-client".to_owned(),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            "--requestheader-uid-headers=X-Remote-Uid".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
            format!("--proxy-client-cert-file={}", pki("front-proxy-client.crt")),
            format!("--proxy-client-key-file={}", pki("front-proxy-client.key")),
            format!("--enable-aggregator-routing={}", self.options.aggregator_routing),
            format!("--audit-policy-file={}", text(&self.file("audit-policy.yaml"))),
            format!("--audit-log-path={}", text(&self.file("audit.log"))),
            // In MB. Or it goes on in another file after 100, where no test would look.
            "--audit-log-maxsize=2000".to_owned(),
        ];
        if self.machine.is_some() {
            arguments.extend([
                format!("--kubelet-client-certificate={}", pki("apiserver-kubelet-client.crt")),
                format!("--kubelet-client-key={}", pki("apiserver-kubelet-client.key")),
                // The node's name is nobody's in DNS.
                "--kubelet-preferred-address-types=InternalIP".to_owned(),
            ]);
        }
        arguments
    }

    pub(crate) fn controller_manager(&self) -> Vec<String> {
        let mut arguments = self.client_of_apiserver(Component::ControllerManager);
        arguments.extend([
            "--use-service-account-credentials=true".to_owned(),
            // Its default of 20 a second would be half of a cluster's start.
            "--kube-api-qps=1000".to_owned(),
            "--kube-api-burst=1000".to_owned(),
            format!("--service-account-private-key-file={}", text(&self.pki("service-accounts.key"))),
            format!("--root-ca-file={}", text(&self.pki("ca.crt"))),
            format!("--cluster-signing-cert-file={}", text(&self.pki("ca.crt"))),
            format!("--cluster-signing-key-file={}", text(&self.pki("ca.key"))),
            // Or it makes its own, in the machine's /usr.
            format!("--flex-volume-plugin-dir={}", text(&self.file("flexvolume"))),
        ]);
        arguments
    }

    pub(crate) fn client_of_apiserver(&self, component: Component) -> Vec<String> {
        let kubeconfig = text(&self.file(&format!("{component}.kubeconfig")));
        let mut arguments: Vec<_> = ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"]
            .map(|flag| format!("--{flag}={kubeconfig}"))
            .into();
        arguments.extend([
            // There is one of each, and a restarted one need not wait for its predecessor's lease.
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", self.listens(component).map_or(0, |(_, port)| port)),
        ]);
        arguments
    }
}
