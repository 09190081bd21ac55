# The agent alone: a static binary and the CA certificates.
ARG GO_VERSION=1.26
FROM --platform=$BUILDPLATFORM docker.io/library/golang:${GO_VERSION} AS build
ARG TARGETOS=linux
ARG TARGETARCH
ARG VERSION=dev
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 GOOS=${TARGETOS} GOARCH=${TARGETARCH:-$(go env GOARCH)} \
    go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=${VERSION}" -o /postern ./cmd/postern

FROM scratch AS agent
ARG VERSION=dev
LABEL org.opencontainers.image.title="postern" \
      org.opencontainers.image.description="Attaches provider keys from a secret store to an application's requests" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /postern /postern
USER 65532:65532
ENTRYPOINT ["/postern"]
CMD ["agent"]
