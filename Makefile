# `make test` is everything but the long ones: soak, fuzz, faults and framing at full length and bench are targets of their own.
GO      ?= go
VERSION ?= dev
FUZZTIME ?= 60s
FRAMING ?= 5000
LDFLAGS  = -s -w -X main.version=$(VERSION)

.PHONY: build sbom licenses test lint wall framing soak faults bench fuzz image tools cluster clean

build: ## the agent with the command line, and the injector, static; the same sources give the same bytes
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/postern ./cmd/postern-injector

test: ## every test; ends with a summary
	$(GO) run ./test/run

SUPPLY = $(GO) run -C test/tools/supply .

sbom: build ## a bill of materials beside each program (CycloneDX)
	for p in postern postern-injector; do $(SUPPLY) sbom $(CURDIR)/bin/$$p $(VERSION) >bin/$$p.cdx.json || exit 1; done

licenses: build ## what the programs are made of, with licenses; fails on one that test/tools/supply/allowed.txt does not list
	@$(SUPPLY) licenses allowed.txt $(CURDIR)/bin/postern $(CURDIR)/bin/postern-injector

lint: ## gofmt, go vet on every platform, staticcheck, govulncheck, go mod verify
	$(GO) run ./test/lint

wall: ## hostile clients and upstreams against the built binary, in a network namespace; prints every case
	@mkdir -p bin && $(GO) test -c -o bin/wall.test ./test/wall && cd test/wall && ../../bin/wall.test
	$(GO) test -count=1 -v ./test/framing

framing: ## requests and answers, malformed and borderline, read by the agent and by real peers: FRAMING for each peer; SEED repeats a run
	$(GO) test -count=1 -timeout 60m -v ./test/framing -requests $(FRAMING) -answers $(FRAMING) $(if $(SEED),-seed $(SEED))

mutants: ## breaks one guard of the agent at a time; a case of the wall must fail for each
	$(GO) run ./test/wall/mutants

soak: ## the stories of test/e2e at full length, or one of them: RUN=TestSoak is ten minutes of load with a rotation every half minute
	POSTERN_E2E_LONG=1 $(GO) test -count=1 -timeout 60m -v -run '$(RUN)' ./test/e2e

faults: ## Vault, providers, clients and the machine fail under load, at full length; ends with a table
	POSTERN_E2E_LONG=1 $(GO) test -count=1 -timeout 60m -v -run '$(RUN)' ./test/e2e/faults

bench: ## ratios against nginx, haproxy, a bare ReverseProxy and a bare goproxy, in one run
	$(GO) run ./test/bench

fuzz: ## each fuzzer for FUZZTIME
	$(GO) run ./test/fuzz -time $(FUZZTIME)

BUILD_IMAGE = $$(command -v docker >/dev/null && docker info >/dev/null 2>&1 && echo docker build || echo buildah bud) \
	--build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD)

image: ## the container images of the agent and the injector, with docker or buildah
	$(BUILD_IMAGE) --build-arg PROGRAMS=postern -t postern:$(VERSION) .
	$(BUILD_IMAGE) --build-arg PROGRAMS=postern-injector --target injector -t postern-injector:$(VERSION) .

cluster: ## a one-node Kubernetes with Vault and both images, until Ctrl-C or for CMD
	$(GO) run ./test/cluster/cmd/cluster $(CMD)

tools: ## build the real components that tests need
	$(GO) run ./test/tools/cmd/tools

clean:
	rm -rf bin
