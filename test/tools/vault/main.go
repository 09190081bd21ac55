// Command vault is the HashiCorp Vault server and CLI that the tests run
// against, built from its published Go module.
//
// It is built with the tag minimal, which leaves out the cloud plugins and
// storage back ends and with them most of the dependencies. The Kubernetes auth
// method is not in that set and is added here.
package main

import (
	"os"
	"reflect"
	"unsafe"

	kubeauth "github.com/hashicorp/vault-plugin-auth-kubernetes"
	"github.com/hashicorp/vault/command"
	"github.com/hashicorp/vault/helper/builtinplugins"
	"github.com/hashicorp/vault/sdk/logical"
)

func main() {
	addCredentialBackend("kubernetes", kubeauth.Factory)
	os.Exit(command.Run(os.Args[1:]))
}

// addCredentialBackend registers an auth method that the build left out. The
// registry's map and its element type are unexported, hence reflection.
func addCredentialBackend(name string, factory logical.Factory) {
	field := reflect.ValueOf(builtinplugins.Registry).Elem().FieldByName("credentialBackends")
	backends := reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem()
	backend := reflect.New(backends.Type().Elem()).Elem()
	backend.FieldByName("Factory").Set(reflect.ValueOf(factory))
	backends.SetMapIndex(reflect.ValueOf(name), backend)
}
