//! `docs/spec.md` says what the parser does.

use serde_json::Value;
use spec::deployment::{parse, schema};

const DOCS: &str = include_str!("../../docs/spec.md");

#[test]
fn every_example_of_the_documentation_is_valid() {
    let blocks: Vec<_> = DOCS.split("```json\n").skip(1).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        let text = block.split("```").next().expect("split gives one piece at least");
        parse(text).unwrap_or_else(|problems| panic!("{problems}\nin {text}"));
    }
}

#[test]
fn every_field_is_documented() {
    let mut names = Vec::new();
    collect(&schema(), &mut names);
    assert!(names.len() > 40, "{names:?}");
    for name in names {
        let forms =
            [format!("`{name}`"), format!(".{name}`"), format!(".{name}[]"), format!("`{name}.")];
        assert!(forms.iter().any(|form| DOCS.contains(form)), "docs/spec.md lacks {name}");
    }
}

/// The names of all fields with a fixed name.
fn collect(schema: &Value, names: &mut Vec<String>) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::Object(properties)) = map.get("properties") {
                names.extend(properties.keys().cloned());
            }
            map.values().for_each(|value| collect(value, names));
        }
        Value::Array(list) => list.iter().for_each(|value| collect(value, names)),
        _ => {}
    }
}
