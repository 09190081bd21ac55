package tools

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

//go:embed schemas.go
var schemasSource []byte

// SchemaLocation is where kubeconform finds a kind's schema below [BuildSchemas]' folder.
const SchemaLocation = "{{ .Group }}/{{ .ResourceKind }}_{{ .ResourceAPIVersion }}.json"

// crdFiles are the definitions of the kinds that the chart and the examples have beside Kubernetes' own.
var crdFiles = map[string][]string{
	"github.com/cert-manager/cert-manager": {"deploy/crds/cert-manager.io_certificates.yaml"},
	"github.com/prometheus-operator/prometheus-operator": {
		"example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
		"example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
	},
	"istio.io/api": {"kubernetes/customresourcedefinitions.gen.yaml"},
}

const objectMeta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"

// BuildSchemas returns a folder with the JSON schema of every kind that the API
// server of [ControlPlane] serves, and of [crdFiles]' kinds. They are strict:
// what is no field is refused.
func BuildSchemas() (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	nested := func(name string) string { return filepath.Join(root, "test", "tools", name) }
	pins := [][]byte{schemasSource, []byte(kubernetesVersion)}
	for _, name := range []string{"go.mod", "go.sum"} {
		content, err := os.ReadFile(filepath.Join(nested("crds"), name))
		if err != nil {
			return "", err
		}
		pins = append(pins, content)
	}
	return Cached("schemas", Key(pins...), func(dir string) error {
		source, err := moduleDir(nested("k8s"), "k8s.io/kubernetes")
		if err != nil {
			return err
		}
		meta, err := writeServed(dir, filepath.Join(source, "api", "openapi-spec", "swagger.json"))
		if err != nil {
			return err
		}
		for _, module := range slices.Sorted(maps.Keys(crdFiles)) {
			source, err := moduleDir(nested("crds"), module)
			if err != nil {
				return err
			}
			for _, file := range crdFiles[module] {
				if err := writeCRDs(dir, filepath.Join(source, filepath.FromSlash(file)), meta); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// moduleDir is where the module cache has a module that the nested one pins.
func moduleDir(nested, module string) (string, error) {
	cmd := exec.Command("go", "mod", "download", "-json", module)
	cmd.Dir, cmd.Env = nested, append(os.Environ(), "GOFLAGS=-mod=readonly", "GOWORK=off")
	out, err := cmd.Output()
	var said struct{ Dir, Error string }
	if jsonErr := json.Unmarshal(out, &said); jsonErr != nil || said.Dir == "" {
		return "", fmt.Errorf("%s in %s: %w: %s", strings.Join(cmd.Args, " "), nested, err, said.Error)
	}
	return said.Dir, nil
}

// writeServed writes the schemas of Kubernetes' own kinds, and returns the
// definitions that an object's metadata is made of.
func writeServed(dir, swagger string) (meta map[string]any, err error) {
	content, err := os.ReadFile(swagger)
	if err != nil {
		return nil, err
	}
	var spec struct{ Definitions map[string]map[string]any }
	if err := json.Unmarshal(content, &spec); err != nil {
		return nil, fmt.Errorf("%s: %w", swagger, err)
	}
	if spec.Definitions[objectMeta] == nil {
		return nil, fmt.Errorf("%s does not define %s", swagger, objectMeta)
	}
	for name, d := range spec.Definitions {
		switch {
		case d["format"] == "int-or-string":
			d["type"] = []string{"integer", "string"}
			delete(d, "format")
		case strings.HasSuffix(name, ".resource.Quantity"):
			d["type"] = []string{"number", "string"}
		}
		closed(d)
	}
	for name, d := range spec.Definitions {
		kinds, _ := d["x-kubernetes-group-version-kind"].([]any)
		if len(kinds) != 1 { // what several groups have (DeleteOptions) is no object of a manifest
			continue
		}
		k, _ := kinds[0].(map[string]any)
		schema := map[string]any{"$ref": "#/definitions/" + name, "definitions": used(name, spec.Definitions)}
		if err := writeSchema(dir, fmt.Sprint(k["group"]), fmt.Sprint(k["version"]), fmt.Sprint(k["kind"]), schema); err != nil {
			return nil, err
		}
	}
	return used(objectMeta, spec.Definitions), nil
}

// used are a definition and all that it refers to.
func used(name string, all map[string]map[string]any) map[string]any {
	found := map[string]any{}
	var follow func(any)
	follow = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				name := strings.TrimPrefix(ref, "#/definitions/")
				if found[name] == nil {
					found[name] = all[name]
					follow(all[name])
				}
			}
			for _, inner := range v {
				follow(inner)
			}
		case []any:
			for _, inner := range v {
				follow(inner)
			}
		}
	}
	follow(map[string]any{"$ref": "#/definitions/" + name})
	return found
}

// writeCRDs writes the schemas of a file's CustomResourceDefinitions.
func writeCRDs(dir, file string, meta map[string]any) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	written := 0
	for documents := yaml.NewDecoder(f); ; {
		var crd struct {
			Spec struct {
				Group    string
				Names    struct{ Kind string }
				Versions []struct {
					Name   string
					Schema struct {
						OpenAPIV3Schema map[string]any `yaml:"openAPIV3Schema"`
					}
				}
			}
		}
		if err := documents.Decode(&crd); err != nil {
			if written == 0 {
				return fmt.Errorf("%s defines no kind: %w", file, err)
			}
			return nil // the end
		}
		for _, v := range crd.Spec.Versions {
			schema := v.Schema.OpenAPIV3Schema
			properties, _ := schema["properties"].(map[string]any)
			if properties == nil {
				return fmt.Errorf("%s: %s has no properties", file, crd.Spec.Names.Kind)
			}
			// A definition may leave these out, and says nothing of metadata's fields.
			properties["apiVersion"], properties["kind"] = map[string]any{"type": "string"}, map[string]any{"type": "string"}
			properties["metadata"] = map[string]any{"$ref": "#/definitions/" + objectMeta}
			closed(schema)
			schema["definitions"] = meta
			if err := writeSchema(dir, crd.Spec.Group, v.Name, crd.Spec.Names.Kind, schema); err != nil {
				return err
			}
			written++
		}
	}
}

// closed makes a schema that has properties take no others, and so within. Of its
// alternatives (oneOf and the like) nothing is closed: they name some of the
// properties that stand beside them.
func closed(v any) {
	schema, ok := v.(map[string]any)
	if !ok {
		return
	}
	properties, _ := schema["properties"].(map[string]any)
	for _, inner := range properties {
		closed(inner)
	}
	closed(schema["items"])
	if schema["additionalProperties"] != nil {
		closed(schema["additionalProperties"])
	} else if len(properties) > 0 && schema["x-kubernetes-preserve-unknown-fields"] == nil {
		schema["additionalProperties"] = false
	}
}

func writeSchema(dir, group, version, kind string, schema map[string]any) error {
	if group == "" { // what kubeconform takes for the core group's name
		group = version
	}
	file := filepath.Join(dir, group, strings.ToLower(kind)+"_"+version+".json")
	content, err := json.Marshal(schema)
	if err != nil {
		return fmt.Errorf("%s %s/%s: %w", kind, group, version, err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, content, 0o644)
}
