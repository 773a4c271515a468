// external-storage is Kubernetes' end-to-end tests of a CSI driver ("External Storage") without the rest of e2e.test, whose
// build would take ten times as long: the same test suites, framework and flags. e2e.test of a Kubernetes release runs the same
// tests with the same -storage.testdriver.
//
// What test/e2e does before its first test and this program does not: wait for pods of kube-system, pull images, read the
// cluster's address family. No test of a CSI driver depends on them.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
	"k8s.io/component-base/logs"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	e2enode "k8s.io/kubernetes/test/e2e/framework/node"
	imageutils "k8s.io/kubernetes/test/utils/image"

	// Defines and freezes the labels of tests, which the command line may name.
	_ "k8s.io/kubernetes/test/e2e/feature"
	// The tests: registers -storage.testdriver, which defines them.
	_ "k8s.io/kubernetes/test/e2e/storage/external"

	// What the framework does around each test: report the events of a failed test's namespace, wait for nodes.
	_ "k8s.io/kubernetes/test/e2e/framework/debug/init"
	_ "k8s.io/kubernetes/test/e2e/framework/node/init"
	// Objects in failures are printed as YAML.
	_ "k8s.io/kubernetes/test/utils/format"

	// The flags of logging, as in e2e.test.
	_ "k8s.io/component-base/logs/testinit"
)

// images are those of the pods of these tests, by the names that the bench gives them.
var images = []struct {
	name string
	id   imageutils.ImageID
}{
	{"agnhost", imageutils.Agnhost},
	{"busybox", imageutils.BusyBox},
	{"glibc", imageutils.GlibcDnsTesting},
	{"nginx", imageutils.Nginx},
}

// spec is what ginkgo expects of Go's testing.T.
type spec struct{ failed bool }

func (s *spec) Fail() { s.failed = true }

var _ = ginkgo.SynchronizedBeforeSuite(func(ctx context.Context) {
	client, err := framework.LoadClientset()
	framework.ExpectNoError(err, "load the kubeconfig")
	timeouts := framework.NewTimeoutContext()
	framework.ExpectNoError(e2enode.WaitForAllNodesSchedulable(ctx, client, timeouts.NodeSchedulable))
	if framework.TestContext.CloudConfig.NumNodes == framework.DefaultNumNodes {
		nodes, err := e2enode.GetReadySchedulableNodes(ctx, client)
		framework.ExpectNoError(err)
		framework.TestContext.CloudConfig.NumNodes = len(nodes.Items)
	}
}, func(context.Context) {})

func main() {
	// The ginkgo program, which runs several processes of this one, passes flags of `go test`.
	testing.Init()
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	listImages := flag.Bool("images", false, "print the names of the images of these tests' pods, and end")
	flag.Parse()
	if *listImages {
		for _, image := range images {
			fmt.Println(image.name, imageutils.GetE2EImage(image.id))
		}
		return
	}
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "unknown arguments: %s\n", flag.Args())
		os.Exit(1)
	}
	framework.AfterReadingAllFlags(&framework.TestContext)

	logs.InitLogs()
	klog.EnableContextualLogging(true)
	gomega.RegisterFailHandler(framework.Fail)
	suite, reporter := framework.CreateGinkgoConfig()
	outcome := &spec{}
	passed := ginkgo.RunSpecs(outcome, "Kubernetes External Storage", suite, reporter)
	logs.FlushLogs()
	if !passed || outcome.failed {
		os.Exit(1)
	}
}
