// plugin-registrar stands for node-driver-registrar, which the module proxy does not serve: it tells kubelet that a CSI
// driver is there. It runs in the guest, beside the node plugin.
//
// Rules, as kubernetes-csi/node-driver-registrar keeps them: wait for the driver's socket, ask the driver's name
// (GetPluginInfo; no answer in time ends the program), serve kubelet's plugin registration on <driver>-reg.sock, open to its
// owner only; a registration that kubelet reports as failed ends the program with an error, so that it is started anew;
// SIGTERM removes the socket, by which kubelet unregisters the driver; with --http-endpoint, /healthz answers 200 while the
// socket is there, so that a liveness probe notices that it is gone.
//
// It is Go and not Rust for one reason: kubelet dials this socket with its percent-encoded path as HTTP/2 authority, which
// Rust's h2 refuses before any server sees the call. (The driver's own socket is dialled with the authority "localhost".)
//
// What it does not do: the registration-probe mode, metrics.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// csiVersion is the CSI version that the driver speaks; kubelet accepts 1.x.
const csiVersion = "1.0.0"

type registrar struct {
	registration.UnimplementedRegistrationServer
	driver, endpoint string
	failed           chan error
}

func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	log.Printf("kubelet asks about %s", r.driver)
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: r.driver, Endpoint: r.endpoint, SupportedVersions: []string{csiVersion},
	}, nil
}

func (r *registrar) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if status.PluginRegistered {
		log.Printf("kubelet registered %s", r.driver)
	} else {
		r.failed <- fmt.Errorf("kubelet could not register the driver: %s", status.Error)
	}
	return &registration.RegistrationStatusResponse{}, nil
}

func main() {
	address := flag.String("csi-address", "/run/csi/socket", "the driver's socket, as this process sees it")
	endpoint := flag.String("kubelet-registration-path", "", "the driver's socket, as kubelet sees it")
	folder := flag.String("plugin-registration-path", "/registration", "the folder of kubelet's registration sockets")
	health := flag.String("http-endpoint", "", "address of /healthz; empty means none")
	timeout := flag.Duration("timeout", time.Minute, "how long the driver may take to tell its name")
	flag.Int("v", 0, "accepted as the original does; there is one level")
	flag.Parse()
	if err := run(*address, *endpoint, *folder, *health, *timeout); err != nil {
		log.Fatal(err)
	}
}

func run(address, endpoint, folder, health string, timeout time.Duration) error {
	if endpoint == "" {
		return errors.New("--kubelet-registration-path is required")
	}
	signals, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	driver, err := driverName(signals, address, timeout)
	if err != nil {
		return err
	}
	socket := filepath.Join(folder, driver+"-reg.sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// The socket is open to its owner only from its first moment.
	syscall.Umask(0o077)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	r := &registrar{driver: driver, endpoint: endpoint, failed: make(chan error, 1)}
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, r)
	served := make(chan error, 2)
	go func() { served <- server.Serve(listener) }()
	if health != "" {
		go func() { served <- http.ListenAndServe(health, healthz(socket)) }()
	}
	log.Printf("%s waits for kubelet at %s", driver, socket)
	select {
	case err = <-served:
	case err = <-r.failed:
	case <-signals.Done():
		err = nil
	}
	// Closing a unix listener removes its file, by which kubelet notices.
	server.Stop()
	return err
}

// healthz answers 200 at /healthz while the registration socket exists.
func healthz(socket string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(answer http.ResponseWriter, _ *http.Request) {
		file, err := os.Stat(socket)
		if err != nil || file.Mode()&fs.ModeSocket == 0 {
			http.Error(answer, "the registration socket is gone", http.StatusNotFound)
		}
	})
	return mux
}

// driverName waits for the driver's socket and asks once.
func driverName(ctx context.Context, address string, timeout time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	connection, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer connection.Close()
	answer, err := csi.NewIdentityClient(connection).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return "", fmt.Errorf("ask the driver at %s for its name: %w", address, err)
	}
	if answer.GetName() == "" {
		return "", errors.New("the driver's name is empty")
	}
	return answer.GetName(), nil
}
