// Calls Weft by its one target, xds:///weft, from Go, with nothing but the contracts under proto/:
// gRPC's own xDS client finds who serves a method, balances, and goes elsewhere when one fails.
//
//	mesh-client PARENT CALLS_PER_SECOND
//
// GRPC_XDS_BOOTSTRAP or GRPC_XDS_BOOTSTRAP_CONFIG says where Weft's control plane is; WEFT_API_KEY
// holds the key, where one is asked for. Lists the tools of PARENT, such as tenants/default, until
// SIGTERM. Each line on stdout is a JSON document: who answered how often since the last one, what
// failed, and the slowest answer.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	_ "google.golang.org/grpc/xds" // makes the scheme xds: known

	tools "weft.example/mesh-client/weft/tools/v1"
)

const (
	deadline = 5 * time.Second
	lapTime  = 200 * time.Millisecond
	// gRPC tries no call again of whose answer a part has come. With HTTP/2's own 64 KiB for all answers of
	// a connection, those of a few dozen calls at once stop half-way, and end so where their server dies.
	windowBytes = 4 << 20
)

// lap is what became of the calls that ended within it.
type lap struct {
	Answered  map[string]int `json:"answered"`
	Failed    map[string]int `json:"failed"`
	SlowestMs int64          `json:"slowest_ms"`
}

type caller struct {
	stub   tools.ToolServiceClient
	parent string
	key    string

	mutex sync.Mutex
	lap   lap
}

func newLap() lap {
	return lap{Answered: map[string]int{}, Failed: map[string]int{}}
}

// call lists the tools once, and notes which server's address it was answered from.
func (c *caller) call() {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if c.key != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.key)
	}
	var server peer.Peer
	began := time.Now()
	_, err := c.stub.ListTools(ctx, &tools.ListToolsRequest{Parent: c.parent}, grpc.Peer(&server))
	spent := time.Since(began).Milliseconds()

	c.mutex.Lock()
	defer c.mutex.Unlock()
	if err != nil {
		c.lap.Failed[fmt.Sprintf("%s: %s", status.Code(err), status.Convert(err).Message())]++
		return
	}
	c.lap.Answered[server.Addr.String()]++
	c.lap.SlowestMs = max(c.lap.SlowestMs, spent)
}

func (c *caller) print() error {
	c.mutex.Lock()
	done := c.lap
	c.lap = newLap()
	c.mutex.Unlock()
	return json.NewEncoder(os.Stdout).Encode(done)
}

func run(parent string, perSecond int) error {
	// The control plane says which clusters are to be reached by mutual TLS; others are in plain text.
	credentials, err := xds.NewClientCredentials(xds.ClientOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		return err
	}
	connection, err := grpc.NewClient(
		"xds:///weft",
		grpc.WithTransportCredentials(credentials),
		grpc.WithInitialWindowSize(windowBytes),
		grpc.WithInitialConnWindowSize(windowBytes),
	)
	if err != nil {
		return err
	}
	defer connection.Close()
	c := &caller{
		stub:   tools.NewToolServiceClient(connection),
		parent: parent,
		key:    os.Getenv("WEFT_API_KEY"),
		lap:    newLap(),
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	calls := time.NewTicker(time.Second / time.Duration(perSecond))
	laps := time.NewTicker(lapTime)
	var underWay sync.WaitGroup
	for {
		select {
		case <-calls.C:
			underWay.Go(c.call)
		case <-laps.C:
			if err := c.print(); err != nil {
				return err
			}
		case <-ended:
			underWay.Wait()
			return c.print()
		}
	}
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: mesh-client PARENT CALLS_PER_SECOND")
		os.Exit(2)
	}
	perSecond, err := strconv.Atoi(os.Args[2])
	if err != nil || perSecond < 1 || perSecond > 10_000 {
		fmt.Fprintln(os.Stderr, "CALLS_PER_SECOND is a number from 1 to 10000")
		os.Exit(2)
	}
	if err := run(os.Args[1], perSecond); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
