package server

import (
	_ "embed"
	"encoding/json"
	"sync"

	"gopkg.in/yaml.v3"
)

//go:embed openapi.yaml
var openapiYAML []byte

// document is the API's description, OpenAPI 3.1, as JSON.
var document = sync.OnceValue(func() []byte {
	var d map[string]any
	if err := yaml.Unmarshal(openapiYAML, &d); err != nil {
		panic(err) // it is a part of the program
	}
	b, err := json.Marshal(d)
	if err != nil {
		panic(err)
	}
	return b
})
