// agnhost has those commands of Kubernetes' test image of that name which tests of storage run. The whole program is ten times
// as large, and a worker of the bench keeps its images in memory.
package main

import (
	"os"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/test/images/agnhost/mounttest"
	"k8s.io/kubernetes/test/images/agnhost/pause"
)

func main() {
	root := &cobra.Command{Use: "agnhost"}
	root.AddCommand(mounttest.CmdMounttest, pause.CmdPause)
	os.Exit(cli.Run(root))
}
