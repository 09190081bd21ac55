package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-proxy/postern/agent"
)

func newStatus(c *common) *cobra.Command {
	var ready bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Ask the running agent how it is",
		Long: `Ask the agent on this machine (listen.admin of the configuration) how it is: its
routes, the key versions in use, and what it is waiting for. With --ready it exits 0
if the agent is ready, and else 1 and says why: the exec probe of pods.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := c.load()
			if err != nil {
				return err
			}
			if ready {
				return isReady(cfg.Listen.Admin)
			}
			st, err := fetchStatus(cfg.Listen.Admin)
			if err != nil {
				return err
			}
			return c.print(cmd, st, func(w io.Writer) { printStatus(w, st) })
		},
	}
	cmd.Flags().BoolVar(&ready, "ready", false, "say nothing if the agent is ready, else why not")
	c.outputFlag(cmd)
	return cmd
}

// adminURL is where the admin listener is reached from this machine.
func adminURL(listen, path string) string {
	host, port, err := net.SplitHostPort(listen)
	if err == nil {
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			listen = net.JoinHostPort("127.0.0.1", port)
		}
	}
	return "http://" + listen + path
}

// local never goes through a proxy: the agent is on this machine.
var local = &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func isReady(listen string) error {
	resp, err := local.Get(adminURL(listen, "/readyz"))
	if err != nil {
		return fmt.Errorf("no agent answers at %s (listen.admin)", listen)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	return fmt.Errorf("not ready: %s", strings.TrimSpace(string(body)))
}

func fetchStatus(listen string) (agent.Status, error) {
	var st agent.Status
	resp, err := local.Get(adminURL(listen, "/status"))
	if err != nil {
		return st, fmt.Errorf("no agent answers at %s (listen.admin); is `postern agent` running with this configuration?", listen)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return st, fmt.Errorf("%s (listen.admin) answered %s: is it a postern agent?", listen, resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 4<<20)).Decode(&st); err != nil {
		return st, fmt.Errorf("%s (listen.admin): the answer is not an agent's status", listen)
	}
	return st, nil
}

func printStatus(w io.Writer, st agent.Status) {
	state := "ready"
	if !st.Ready {
		state = "NOT ready, waiting for " + strings.Join(st.Waiting, ", ")
	}
	fmt.Fprintf(w, "%s: %s in %s, up %s, on %s\n", state, st.ProxyID, st.Environment, age(st.Started), st.Proxy)
	fmt.Fprintf(w, "generation %d of the configuration, from %s; audit head %s\n\n", st.Generation, st.Source, st.AuditHead)
	empty := unstored(st)
	rows := [][]string{{"ROUTE", "HOSTS", "KEY"}}
	for _, p := range st.Providers {
		if !slices.Contains(empty, p.Key) {
			rows = append(rows, []string{p.Route, strings.Join(p.Hosts, " "), p.Key})
		}
	}
	table(w, rows)
	fmt.Fprintln(w)
	rows = [][]string{{"KEY", "VERSION", "STATE", "SHARE", "FINGERPRINT", "AGE", "STORE"}}
	var notes []string
	for _, k := range st.Keys {
		if slices.Contains(empty, k.Name) {
			continue
		}
		contact := "not reached yet"
		switch {
		case k.Trouble != "":
			contact = k.Trouble
		case !k.LastContact.IsZero():
			contact = "seen " + age(k.LastContact) + " ago"
		}
		if len(k.Versions) == 0 {
			rows = append(rows, []string{k.Name, "-", "none", "-", "-", "-", contact})
		}
		for _, v := range k.Versions {
			rows = append(rows, []string{k.Name, strconv.Itoa(v.Number), v.State, strconv.Itoa(v.Weight) + "%", orDash(v.Fingerprint), age(v.Created), contact})
			if k.Usable && v.Reason != "" { // else it is in k.Reason
				notes = append(notes, fmt.Sprintf("%s version %d was rejected: %s", k.Name, v.Number, v.Reason))
			}
		}
		if reason := k.Reason(); reason != "" {
			notes = append(notes, k.Name+" cannot be used: "+reason)
		} else if k.Error != "" {
			notes = append(notes, k.Name+": "+k.Error)
		}
	}
	table(w, rows)
	if len(empty) > 0 {
		notes = append(notes, "no key is stored, and none is required: "+strings.Join(empty, ", "))
	}
	if len(notes) > 0 {
		fmt.Fprintf(w, "\n%s\n", strings.Join(notes, "\n"))
	}
}

// unstored names the keys that the agent has none of and does not need.
func unstored(st agent.Status) []string {
	var names []string
	for _, k := range st.Keys {
		if k.Missing && len(k.Versions) == 0 && !slices.Contains(st.Waiting, k.Name) {
			names = append(names, k.Name)
		}
	}
	return names
}
