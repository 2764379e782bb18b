//! The shape of a spec as data: the parser's checks and the JSON Schema both come from it.

/// What a JSON value must look like.
pub(crate) enum Shape {
    /// Anything; kept for others and not looked into.
    Any,
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Integer {
        /// The least.
        min: u64,
        /// The greatest.
        max: u64,
        /// Why the range is what it is, for messages; may be empty.
        why: &'static str,
    },
    /// A string in a certain form.
    Text(&'static Form),
    /// One of a few strings.
    Choice {
        /// What is chosen, for messages.
        what: &'static str,
        /// The strings that are valid.
        names: &'static [&'static str],
        /// Strings that will be valid one day.
        later: &'static [&'static str],
    },
    /// A number of bytes, or a string with a unit.
    Size {
        /// The least, in bytes.
        min: u64,
        /// The greatest, in bytes.
        max: u64,
        /// What it must be a multiple of, in bytes.
        multiple: u64,
    },
    /// A TCP or UDP port: a number, or a string of digits.
    Port,
    /// A list.
    List {
        /// What each item looks like.
        item: &'static Shape,
        /// The fewest items.
        min: usize,
        /// The most items.
        max: usize,
        /// Why there may not be more, for messages; may be empty.
        why: &'static str,
    },
    /// An object whose names the user chooses.
    Map {
        /// The form of the names.
        names: &'static Form,
        /// The form of the (string) values.
        values: &'static Form,
        /// The most entries.
        max: usize,
    },
    /// An object with fixed fields.
    Object(&'static Object),
    /// An object whose field `data` looks as its field `type` says.
    Workload,
}

/// A form of strings.
pub(crate) struct Form {
    /// What is expected, for messages and the schema.
    pub(crate) expected: &'static str,
    /// The same as an ECMAScript regular expression; not stricter than `accepts`.
    pub(crate) pattern: &'static str,
    /// Whether a string has the form.
    pub(crate) accepts: fn(&str) -> bool,
}

/// An object with fixed fields.
pub(crate) struct Object {
    /// What the object is, for messages.
    pub(crate) what: &'static str,
    /// Its fields.
    pub(crate) fields: &'static [Field],
}

/// A field of an object.
pub(crate) struct Field {
    /// Its name.
    pub(crate) name: &'static str,
    /// What the parser does with it.
    pub(crate) rule: Rule,
    /// What it means, in one line; for a field that is not supported, what to use instead.
    pub(crate) doc: &'static str,
}

/// What the parser does with a field.
pub(crate) enum Rule {
    /// It must be there.
    Required(Shape),
    /// It may be there.
    Optional(Shape),
    /// It is part of the format, but this version can't honour it.
    NotYet,
}

impl Object {
    /// The names that are valid today.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.fields
            .iter()
            .filter(|field| !matches!(field.rule, Rule::NotYet))
            .map(|field| field.name)
            .collect()
    }

    /// Whether an empty object would be refused.
    pub(crate) fn has_required(&self) -> bool {
        self.fields.iter().any(|field| matches!(field.rule, Rule::Required(_)))
    }
}

/// A type of workload.
pub(crate) struct WorkloadType {
    /// The names of the type in specs, the usual one first.
    pub(crate) names: &'static [&'static str],
    /// What `data` looks like.
    pub(crate) data: &'static Object,
}
