// answerer is the program of pods behind Services: over HTTP and over UDP, both on port 8080, it answers everybody with
// the address from which the question came, as it saw it, and its own host name, which is its pod's:
//
//	10.78.0.50 web-1
//
// It has no wish of its own about its end: SIGTERM ends it at once. A pod that is to be drained first says so in its
// manifest (lifecycle.preStop).
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
)

// port of both protocols.
const port = ":8080"

// longest question over UDP that is read; what it says does not matter.
const longest = 512

func main() {
	name, err := os.Hostname()
	if err != nil {
		log.Fatalf("no host name: %v", err)
	}
	answer := func(from string) string {
		host, _, err := net.SplitHostPort(from)
		if err != nil {
			host = from
		}
		return fmt.Sprintf("%s %s\n", host, name)
	}
	socket, err := net.ListenPacket("udp", port)
	if err != nil {
		log.Fatal(err)
	}
	go serveUDP(socket, answer)
	log.Fatal(http.ListenAndServe(port, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := w.Write([]byte(answer(r.RemoteAddr))); err != nil {
			log.Printf("answer %s: %v", r.RemoteAddr, err)
		}
	})))
}

func serveUDP(socket net.PacketConn, answer func(string) string) {
	question := make([]byte, longest)
	for {
		_, from, err := socket.ReadFrom(question)
		if err != nil {
			log.Fatal(err)
		}
		if _, err := socket.WriteTo([]byte(answer(from.String())), from); err != nil {
			log.Printf("answer %s: %v", from, err)
		}
	}
}
