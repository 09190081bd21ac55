# The images of postern's programs, each FROM scratch with a static binary and the CA certificates and nothing
# else. The last target, agent, is the default.
#
#   docker build -t postern .                               or        buildah bud -t postern .
#   docker build -t postern-injector --target injector .
#
# The same sources give the same layer, byte for byte: paths, build ids and times do not get into it.
# PROGRAMS names those that are compiled: for one target, its own is enough (--build-arg PROGRAMS=postern).
ARG GO_VERSION=1.26
FROM --platform=$BUILDPLATFORM docker.io/library/golang:${GO_VERSION} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS=linux
ARG TARGETARCH
ARG VERSION=dev
ARG PROGRAMS="postern postern-injector"
# Each program's whole root is laid out here, with its times set, because a
# folder that COPY itself makes has the time of the build.
RUN set -eu; \
    export CGO_ENABLED=0 GOOS="$TARGETOS" GOARCH="${TARGETARCH:-$(go env GOARCH)}"; \
    for program in $PROGRAMS; do \
      root=/images/$program; \
      mkdir -p "$root/etc/ssl/certs"; \
      cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"; \
      go build -trimpath -buildvcs=false -ldflags "-s -w -buildid= -X main.version=$VERSION" -o "$root/$program" "./cmd/$program"; \
      chmod 0755 "$root" "$root/etc" "$root/etc/ssl" "$root/etc/ssl/certs" "$root/$program"; \
      chmod 0644 "$root/etc/ssl/certs/ca-certificates.crt"; \
      find "$root" -exec touch -h -d @0 {} +; \
    done

FROM scratch AS base
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="postern" \
      org.opencontainers.image.description="Attaches provider keys from a secret store to an application's requests" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/postern-proxy/postern" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 65532:65532

FROM base AS injector
LABEL org.opencontainers.image.title="postern-injector" \
      org.opencontainers.image.description="Adds the agent to pods as they are created"
COPY --from=build /images/postern-injector/ /
ENTRYPOINT ["/postern-injector"]

FROM base AS agent
COPY --from=build /images/postern/ /
ENTRYPOINT ["/postern"]
CMD ["agent"]
