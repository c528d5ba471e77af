// Runs the hooks of one Pod as Velero does before or after its backup of the Pod: by its own code, which finds them in the
// Pod's annotations, executes them in a container of the Pod's, and judges what came of it.
//
// Usage: velero-hooks pre|post NAMESPACE POD. KUBECONFIG says where. It fails as the backup of that Pod would.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/sirupsen/logrus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vmware-tanzu/velero/internal/hook"
	"github.com/vmware-tanzu/velero/pkg/kuberesource"
	"github.com/vmware-tanzu/velero/pkg/podexec"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: velero-hooks pre|post NAMESPACE POD")
		os.Exit(2)
	}
	if err := run(hook.HookPhase(os.Args[1]), os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(phase hook.HookPhase, namespace, name string) error {
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	pod, err := client.CoreV1().Pods(namespace).Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(pod)
	if err != nil {
		return err
	}
	// As its server makes it (pkg/cmd/server/server.go).
	executor := podexec.NewPodCommandExecutor(config, client.CoreV1().RESTClient())
	handler := hook.DefaultItemHookHandler{PodCommandExecutor: executor}
	item := &unstructured.Unstructured{Object: object}
	return handler.HandleHooks(logrus.New(), kuberesource.Pods, item, nil, phase, hook.NewHookTracker())
}
