// Whose hooks are run as it runs them; tests/tools/velero-hooks builds that part of it.
module cluster.velero

go 1.25.0

require github.com/vmware-tanzu/velero v1.17.1
