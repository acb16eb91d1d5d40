//! The `OpenAPI` document, from the table of calls and the types that are sent.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::routes::{Content, For, Limited, ROUTES, Route};
use crate::domain::wire::{PROTOCOL, UNIT};

/// The whole document.
#[must_use]
pub fn document() -> Value {
    let mut make =
        SchemaGenerator::new(SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = "/components/schemas".into()));
    let mut paths: Map<String, Value> = Map::new();
    for route in &ROUTES {
        let operation = operation(route, &mut make);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.to_lowercase()] = operation;
    }
    let mut schemas: Map<String, Value> = make.take_definitions(true).into_iter().collect();
    schemas.insert("Problem".to_owned(), problem());
    let about = format!(
        "What nodes and people say to meter-authority. Amounts are decimal strings in credits, exact to a {UNIT}, and every message about money \
         names that unit. Protocol {PROTOCOL}. Everything is a running total of one epoch, so a repeated, late or reordered message changes nothing."
    );
    json!({
        "openapi": "3.1.0",
        "info": { "title": "meter-authority", "version": env!("CARGO_PKG_VERSION"), "description": about, "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" } },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "certificate": { "type": "mutualTLS", "description": "One URI among the subject's alternative names: urn:meterd:node:NAME or urn:meterd:role:ROLE:NAME" },
                "token": { "type": "http", "scheme": "bearer" },
            },
        },
    })
}

fn operation(route: &Route, make: &mut SchemaGenerator) -> Value {
    let who = match route.open {
        For::Everybody => "everybody".to_owned(),
        For::Nodes => "nodes, for themselves".to_owned(),
        For::Known => "nodes and people".to_owned(),
        For::People(role) => format!("people and programs: {}", role.name()),
    };
    let done = match route.gives {
        Content::None => json!({ "description": "Done" }),
        Content::Json(schema) => json!({ "description": "Done", "content": { "application/json": { "schema": schema(make) } } }),
        Content::Text(media_type, what) => json!({ "description": what, "content": { media_type: { "schema": { "type": "string" } } } }),
    };
    let refused = json!({ "description": "Not done, and why", "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Problem" } } } });
    let mut operation = json!({
        "operationId": format!("{:?}", route.op),
        "summary": route.summary,
        "description": format!("For {who}."),
        "responses": { "2XX": done, "default": refused },
        "security": if route.open == For::Everybody { json!([]) } else { json!([{ "certificate": [] }, { "token": [] }]) },
    });
    if let Content::Json(schema) = route.takes {
        operation["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": schema(make) } } });
    }
    let mut parameters = Vec::new();
    if route.path.contains("{account}") {
        parameters.push(
            json!({ "name": "account", "in": "path", "required": true, "schema": make.subschema_for::<crate::domain::id::AccountId>() }),
        );
    }
    if route.limited == Limited::Yes {
        parameters.push(
            json!({ "name": "limit", "in": "query", "schema": { "type": "integer", "minimum": 1, "maximum": 10_000, "default": 100 } }),
        );
    }
    if !parameters.is_empty() {
        operation["parameters"] = Value::Array(parameters);
    }
    operation
}

fn problem() -> Value {
    let reason = json!({
        "type": "object",
        "properties": { "code": { "type": "string", "description": "A stable word" }, "message": { "type": "string" }, "hint": { "type": ["string", "null"] } },
    });
    json!({ "type": "object", "properties": { "error": reason, "errors": { "type": "array", "items": reason } } })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `meter-authority openapi > docs/authority-openapi.json` makes it anew.
    #[test]
    fn the_document_in_docs_is_the_one_that_the_code_makes() {
        let kept = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/authority-openapi.json")).unwrap();
        assert_eq!(
            kept,
            format!("{:#}\n", document()),
            "make it anew: cargo run --bin meter-authority openapi > docs/authority-openapi.json"
        );
    }

    #[test]
    fn every_reference_leads_somewhere_and_amounts_are_text() {
        let document = document();
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
        assert!(!text.contains("#/$defs/"));
        assert_eq!(document["components"]["schemas"]["Credits"]["type"], "string");
        for (path, verb) in ROUTES.iter().map(|route| (route.path, route.method.to_lowercase())) {
            assert!(document["paths"][path][&verb]["responses"]["2XX"].is_object(), "{verb} {path}");
        }
    }
}
