//! Rust source without what the compiler does not see: enough of a lexer for the rules.

/// The source with comments and the contents of literals blanked out; lines keep their numbers.
pub(crate) fn code_of(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while !rest.is_empty() {
        let (kept, hidden) = next_token(rest);
        let token = rest.get(..kept + hidden).unwrap_or(rest);
        code.push_str(token.get(..kept).unwrap_or(token));
        code.extend(token.chars().skip(kept).map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = rest.get(token.len()..).unwrap_or_default();
    }
    code
}

/// How many bytes at the start of `rest` are code, and how many after them are not.
fn next_token(rest: &str) -> (usize, usize) {
    let until = |pattern: &str, from: usize| {
        let found = rest.get(from..).and_then(|text| text.find(pattern));
        found.map_or(rest.len(), |at| from + at + pattern.len())
    };
    if rest.starts_with("//") {
        return (0, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (0, until("*/", 2));
    }
    if let Some(hashes) = raw_string(rest) {
        let open = rest.find('"').map_or(rest.len(), |at| at + 1);
        return (0, until(&format!("\"{}", "#".repeat(hashes)), open));
    }
    if rest.starts_with('"') {
        return (0, quoted(rest, '"'));
    }
    if rest.starts_with('\'') {
        // A lifetime has no closing quote after its first character.
        let mut characters = rest.chars().skip(1);
        let (first, second) = (characters.next(), characters.next());
        let is_literal = first == Some('\\') || second == Some('\'');
        return if is_literal { (0, quoted(rest, '\'')) } else { (1, 0) };
    }
    let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    let one = rest.chars().next().map_or(1, char::len_utf8);
    (word.max(one), 0)
}

/// For a raw string (also of bytes or of C), the number of its hashes.
fn raw_string(rest: &str) -> Option<usize> {
    let after = ["r", "br", "cr"].iter().find_map(|prefix| rest.strip_prefix(prefix))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after.get(hashes..)?.starts_with('"').then_some(hashes)
}

/// The bytes of a literal with escapes.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Whether `word` stands in `line` by itself.
pub(crate) fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        let after = line.get(at + word.len()..).and_then(|text| text.chars().next());
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

#[test]
fn comments_and_literals_are_no_code() {
    let source =
        "a // unsafe\nb \"unsafe \\\" unsafe\" c /* unsafe\n */ d r#\"un\"safe\"# 'x' '\\'' e";
    let code = code_of(source);
    let words: Vec<&str> = code.split_whitespace().collect();
    assert_eq!(words, ["a", "b", "c", "d", "e"]);
    assert_eq!(code.matches('\n').count(), 2);
}

#[test]
fn lifetimes_are_code() {
    assert_eq!(code_of("fn f<'a>(x: &'a str) -> char { 'y' }").matches('\'').count(), 2);
    assert!(has_word("unsafe {", "unsafe") && !has_word("unsafe_code", "unsafe"));
}
