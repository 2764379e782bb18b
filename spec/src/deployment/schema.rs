//! The JSON Schema (2020-12) of a spec, made from the tables that the parser checks with.

use serde_json::{Map, Value, json};

use super::shape::{Form, Object, Rule, Shape};
use super::tables::{DEPLOYMENT, WORKLOAD, WORKLOAD_TYPES};

/// The JSON Schema of a deployment.
///
/// It accepts what [`super::parse`] accepts, and more: references between workloads, addresses and
/// duplicate names are beyond it.
#[must_use]
pub fn schema() -> Value {
    let mut root = object(&DEPLOYMENT);
    if let Some(fields) = root.as_object_mut() {
        fields.insert("$schema".into(), json!("https://json-schema.org/draft/2020-12/schema"));
        fields.insert("title".into(), json!("Hypha deployment, v1"));
    }
    root
}

fn object(shape: &Object) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in shape.fields {
        let inner = match &field.rule {
            Rule::Required(inner) => {
                required.push(field.name);
                inner
            }
            Rule::Optional(inner) => inner,
            Rule::NotYet => continue,
        };
        let mut value = of(inner);
        if let Some(map) = value.as_object_mut() {
            map.insert("description".into(), json!(field.doc));
        }
        properties.insert(field.name.into(), value);
    }
    json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

fn of(shape: &Shape) -> Value {
    match shape {
        Shape::Any => json!({}),
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Integer { min, max, .. } => {
            json!({"type": "integer", "minimum": min, "maximum": max})
        }
        Shape::Text(form) => text(form),
        Shape::Choice { names, .. } => json!({"enum": names}),
        Shape::Size { min, max, multiple } => json!({"anyOf": [
            {"type": "integer", "minimum": min, "maximum": max, "multipleOf": multiple},
            {"type": "string", "pattern": "^\\s*[0-9]+\\s*(B|KiB|MiB|GiB|TiB)?\\s*$"},
        ]}),
        Shape::Port => json!({"anyOf": [
            {"type": "integer", "minimum": 1, "maximum": 65535},
            {"type": "string", "pattern": "^[0-9]+$"},
        ]}),
        Shape::List { item, min, max, .. } => {
            json!({"type": "array", "items": of(item), "minItems": min, "maxItems": max})
        }
        Shape::Map { names, values, max } => json!({
            "type": "object",
            "propertyNames": text(names),
            "additionalProperties": text(values),
            "maxProperties": max,
        }),
        Shape::Object(inner) => object(inner),
        Shape::Workload => workload(),
    }
}

fn text(form: &Form) -> Value {
    json!({"type": "string", "pattern": form.pattern, "$comment": form.expected})
}

/// One alternative per type: editors then complete the fields of the type that was chosen.
fn workload() -> Value {
    let alternatives = WORKLOAD_TYPES.iter().map(|known| {
        let mut value = object(&WORKLOAD);
        if let Some(properties) = value.get_mut("properties").and_then(Value::as_object_mut) {
            properties.insert("type".into(), json!({"enum": known.names}));
            properties.insert("data".into(), object(known.data));
        }
        if let Some(required) = value.get_mut("required").and_then(Value::as_array_mut)
            && known.data.has_required()
        {
            required.push(json!("data"));
        }
        value
    });
    json!({"oneOf": alternatives.collect::<Vec<_>>()})
}
