// One server of the WAN measurements, over hashicorp/raft: the orders of tests/wan/member.py.
package main

import (
	"bufio"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	boltdb "github.com/hashicorp/raft-boltdb/v2"
)

type sizes struct{ total int }

func (s *sizes) Apply(log *raft.Log) interface{} {
	s.total += len(log.Data)
	return s.total
}
func (s *sizes) Snapshot() (raft.FSMSnapshot, error) { return nil, fmt.Errorf("no snapshots here") }
func (s *sizes) Restore(io.ReadCloser) error         { return fmt.Errorf("no snapshots here") }

func main() {
	id, folder, bind, peers := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	log, err := os.Create(filepath.Join(folder, "log"))
	must(err)
	config := raft.DefaultConfig()
	config.LocalID = raft.ServerID(id)
	config.LogOutput = log
	config.SnapshotThreshold = 1 << 60
	store, err := boltdb.NewBoltStore(filepath.Join(folder, "raft.db"))
	must(err)
	snapshots, err := raft.NewFileSnapshotStore(folder, 1, log)
	must(err)
	transport, err := raft.NewTCPTransport(bind, nil, 3, 10*time.Second, log)
	must(err)
	node, err := raft.NewRaft(config, &sizes{}, store, store, snapshots, transport)
	must(err)

	var configuration raft.Configuration
	for _, peer := range strings.Split(peers, ",") {
		name, address, _ := strings.Cut(peer, "=")
		configuration.Servers = append(configuration.Servers,
			raft.Server{ID: raft.ServerID(name), Address: raft.ServerAddress(address)})
	}
	answer(map[string]any{"ready": id})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		order := strings.Fields(lines.Text())
		began := time.Now()
		result := map[string]any{}
		var err error
		switch order[0] {
		case "bootstrap":
			err = node.BootstrapCluster(configuration).Error()
		case "state":
			result["role"] = node.State().String()
			result["term"] = node.CurrentTerm()
			result["last"] = node.LastIndex()
			result["committed"] = node.CommitIndex()
			_, result["leader"] = node.LeaderWithID()
		case "apply":
			err = node.Apply(random(order[1]), 0).Error()
		case "fill":
			err = fill(node, number(order[1]), random(order[2]))
		}
		if err != nil {
			result["error"] = err.Error()
		}
		result["seconds"] = time.Since(began).Seconds()
		answer(result)
	}
}

func fill(node *raft.Raft, count int, data []byte) error {
	var waiting []raft.ApplyFuture
	for i := 0; i < count || len(waiting) > 0; i++ {
		if i < count {
			waiting = append(waiting, node.Apply(data, 0))
		}
		if len(waiting) >= 256 || i >= count {
			if err := waiting[0].Error(); err != nil {
				return err
			}
			waiting = waiting[1:]
		}
	}
	return nil
}

func random(size string) []byte {
	data := make([]byte, number(size))
	rand.Read(data)
	return data
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	must(err)
	return n
}

func answer(result map[string]any) {
	line, err := json.Marshal(result)
	must(err)
	fmt.Println(string(line))
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
