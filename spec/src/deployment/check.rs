//! Holds a JSON value against its [`Shape`] and reports every difference.

use jsonc_parser::ast::{self, Value};
use jsonc_parser::common::Ranged;

use super::problem::{Reason, Report, cut, nearest, shown};
use super::shape::{Field, Form, Object, Rule, Shape};
use super::tables::{TYPES_HINT, TYPES_LATER, WORKLOAD, WORKLOAD_TYPES};
use crate::size::Size;

/// A value and its JSON pointer.
#[derive(Clone)]
pub(crate) struct Node<'v, 't> {
    pub(crate) value: &'v Value<'t>,
    pub(crate) pointer: String,
}

impl<'v, 't> Node<'v, 't> {
    pub(crate) fn root(value: &'v Value<'t>) -> Self {
        Self { value, pointer: String::new() }
    }

    /// The field `name` of an object.
    pub(crate) fn field(&self, name: &str) -> Option<Self> {
        let Value::Object(object) = self.value else { return None };
        let value = &object.get(name)?.value;
        Some(Self { value, pointer: join(&self.pointer, name) })
    }

    /// The items of a list; none for anything else.
    pub(crate) fn items(&self) -> impl Iterator<Item = Self> + use<'_, 'v, 't> {
        let elements = match self.value {
            Value::Array(array) => array.elements.as_slice(),
            _ => &[],
        };
        elements
            .iter()
            .enumerate()
            .map(|(index, value)| Self { value, pointer: join(&self.pointer, &index.to_string()) })
    }

    /// The value of a string.
    pub(crate) fn text(&self) -> Option<&'v str> {
        match self.value {
            Value::StringLit(text) => Some(&text.value),
            _ => None,
        }
    }

    /// The value of a whole number, or of a string of digits.
    pub(crate) fn integer(&self) -> Option<u64> {
        match self.value {
            Value::NumberLit(number) => digits(number.value),
            Value::StringLit(text) => digits(&text.value),
            _ => None,
        }
    }

    /// The value of a size.
    pub(crate) fn size(&self) -> Option<Size> {
        match self.value {
            Value::NumberLit(number) => digits(number.value).map(Size),
            Value::StringLit(text) => text.value.parse().ok(),
            _ => None,
        }
    }

    /// Whether this is `true`.
    pub(crate) fn is_true(&self) -> bool {
        matches!(self.value, Value::BooleanLit(boolean) if boolean.value)
    }

    pub(crate) fn refuse(&self, report: &mut Report<'_>, reason: Reason) {
        report.add(self.value.start(), &self.pointer, reason);
    }

    fn expected(&self, report: &mut Report<'_>, expected: impl Into<String>) {
        let found = shown(self.value);
        self.refuse(report, Reason::WrongValue { found, expected: expected.into() });
    }
}

fn digits(text: &str) -> Option<u64> {
    let all_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if all_digits { text.parse().ok() } else { None }
}

/// A pointer one step further (RFC 6901 escapes).
fn join(pointer: &str, step: &str) -> String {
    format!("{pointer}/{}", step.replace('~', "~0").replace('/', "~1"))
}

/// Reports every difference between the value and the shape.
pub(crate) fn check(node: &Node<'_, '_>, shape: &Shape, report: &mut Report<'_>) {
    match shape {
        Shape::Any => {}
        Shape::Bool => {
            if !matches!(node.value, Value::BooleanLit(_)) {
                node.expected(report, "true or false");
            }
        }
        Shape::Integer { min, max, why } => {
            let number = matches!(node.value, Value::NumberLit(_)).then(|| node.integer());
            if !number.flatten().is_some_and(|number| (*min..=*max).contains(&number)) {
                node.expected(report, range_words("a whole number", min, max, why));
            }
        }
        Shape::Text(form) => check_text(node, form, report),
        Shape::Choice { what, names, later } => check_choice(node, (*what, names, later), report),
        Shape::Size { min, max, multiple } => {
            let fits =
                |size: &Size| (*min..=*max).contains(&size.0) && size.0.is_multiple_of(*multiple);
            if !node.size().as_ref().is_some_and(fits) {
                let (min, max, multiple) = (Size(*min), Size(*max), Size(*multiple));
                let range = format!("a size from {min} to {max} in multiples of {multiple}");
                node.expected(report, format!("{range}, such as 67108864 or \"64MiB\""));
            }
        }
        Shape::Port => {
            if !node.integer().is_some_and(|port| (1..=65535).contains(&port)) {
                node.expected(report, "a port from 1 to 65535");
            }
        }
        Shape::List { item, min, max, why } => {
            check_list(node, item, (*min, *max, why), report);
        }
        Shape::Map { names, values, max } => check_map(node, names, values, *max, report),
        Shape::Object(object) => check_object(node, object, report),
        Shape::Workload => check_workload(node, report),
    }
}

fn range_words(what: &str, min: &u64, max: &u64, why: &str) -> String {
    let range = if min == max { format!("{min}") } else { format!("{what} from {min} to {max}") };
    if why.is_empty() { range } else { format!("{range} ({why})") }
}

fn check_text(node: &Node<'_, '_>, form: &Form, report: &mut Report<'_>) {
    if !node.text().is_some_and(form.accepts) {
        node.expected(report, form.expected);
    }
}

fn check_choice(
    node: &Node<'_, '_>,
    (what, names, later): (&'static str, &&'static [&'static str], &&'static [&'static str]),
    report: &mut Report<'_>,
) {
    match node.text() {
        Some(text) if names.contains(&text) => {}
        Some(text) if later.contains(&text) => {
            let what = format!("the {what} {text:?}");
            node.refuse(report, Reason::NotYet { what, instead: "" });
        }
        Some(text) => {
            let nearest = nearest(text, names.iter().copied());
            let (found, known) = (cut(text), names.to_vec());
            node.refuse(report, Reason::UnknownName { what, found, nearest, known });
        }
        None => node.expected(report, format!("one of {}", names.join(", "))),
    }
}

fn check_list(
    node: &Node<'_, '_>,
    item: &Shape,
    (min, max, why): (usize, usize, &str),
    report: &mut Report<'_>,
) {
    let Value::Array(array) = node.value else {
        return node.expected(report, "a list");
    };
    if !(min..=max).contains(&array.elements.len()) {
        let because = if why.is_empty() { String::new() } else { format!(" ({why})") };
        return node.expected(report, format!("a list of {min} to {max}{because}"));
    }
    for item_node in node.items() {
        check(&item_node, item, report);
    }
}

fn check_map(
    node: &Node<'_, '_>,
    names: &Form,
    values: &Form,
    max: usize,
    report: &mut Report<'_>,
) {
    let Value::Object(object) = node.value else {
        return node.expected(report, "an object");
    };
    if object.properties.len() > max {
        return node.expected(report, format!("at most {max} entries"));
    }
    check_duplicates(node, object, report);
    for property in &object.properties {
        let name = property.name.as_str();
        let pointer = join(&node.pointer, name);
        if !(names.accepts)(name) {
            let found = format!("the name {:?}", cut(name));
            let expected = names.expected.to_owned();
            report.add(property.start(), &pointer, Reason::WrongValue { found, expected });
        }
        check_text(&Node { value: &property.value, pointer }, values, report);
    }
}

fn check_duplicates(node: &Node<'_, '_>, object: &ast::Object<'_>, report: &mut Report<'_>) {
    let mut seen = std::collections::HashSet::new();
    for property in &object.properties {
        let name = property.name.as_str();
        if !seen.insert(name) {
            let reason = Reason::DuplicateField(cut(name));
            report.add(property.start(), &join(&node.pointer, name), reason);
        }
    }
}

fn check_object(node: &Node<'_, '_>, shape: &'static Object, report: &mut Report<'_>) {
    let Value::Object(object) = node.value else {
        return node.expected(report, format!("an object ({})", shape.what));
    };
    check_duplicates(node, object, report);
    let mut seen_unknown = false;
    for property in &object.properties {
        let name = property.name.as_str();
        let pointer = join(&node.pointer, name);
        match shape.fields.iter().find(|field| field.name == name) {
            Some(Field { rule: Rule::Required(inner) | Rule::Optional(inner), .. }) => {
                check(&Node { value: &property.value, pointer }, inner, report);
            }
            Some(field) => {
                seen_unknown = true;
                let what = format!("{name:?}");
                report.add(property.start(), &pointer, Reason::NotYet { what, instead: field.doc });
            }
            None => {
                seen_unknown = true;
                let known = shape.names();
                let nearest = nearest(name, known.iter().copied());
                let reason = Reason::UnknownField { found: cut(name), nearest, known };
                report.add(property.start(), &pointer, reason);
            }
        }
    }
    for field in shape.fields {
        let is_required = matches!(field.rule, Rule::Required(_));
        // A misspelt or unsupported field usually is the missing one: one message is enough.
        if is_required && object.get(field.name).is_none() && !seen_unknown {
            node.refuse(report, Reason::MissingField(field.name));
        }
    }
}

fn check_workload(node: &Node<'_, '_>, report: &mut Report<'_>) {
    check_object(node, &WORKLOAD, report);
    let Some(type_node) = node.field("type") else { return };
    let Some(type_name) = type_node.text() else {
        return type_node.expected(report, "the name of a workload type");
    };
    let Some(known) = WORKLOAD_TYPES.iter().find(|known| known.names.contains(&type_name)) else {
        return type_node.refuse(report, unknown_type(type_name));
    };
    match node.field("data") {
        Some(data) => check_object(&data, known.data, report),
        None if known.data.has_required() => node.refuse(report, Reason::MissingField("data")),
        None => {}
    }
}

fn unknown_type(name: &str) -> Reason {
    if TYPES_LATER.contains(&name) {
        let what = format!("the workload type {name:?}");
        return Reason::NotYet { what, instead: TYPES_HINT };
    }
    let known: Vec<_> = WORKLOAD_TYPES.iter().flat_map(|known| known.names).copied().collect();
    let nearest = nearest(name, known.iter().copied().chain(TYPES_LATER));
    Reason::UnknownName { what: "workload type", found: cut(name), nearest, known }
}
