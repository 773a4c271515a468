//! YAML configuration as Go programs read it (`gopkg.in/yaml.v2`): the field that reads a plain scalar decides its type.
//!
//! A cluster named `2024`, an infra label `true` or a class `1.10` stand unquoted in the files that installers write, and Go
//! decodes each into the text that stands there. A parser that guesses types first has lost it: as a number, `1.10` is `1.1`.

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};
use serde_saphyr::{Location, Spanned, options::NonFiniteFloatPolicy};

/// The words for true and for false (`gopkg.in/yaml.v2`, `resolve.go`), in lower case. Each may also begin with a capital, or be
/// all capitals.
const TRUE: [&str; 4] = ["true", "yes", "on", "y"];
const FALSE: [&str; 4] = ["false", "no", "off", "n"];

/// The text is no YAML document. Its message names the line and never quotes the text, which may hold a secret.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotYaml(String);

/// Reads one document. Every scalar but null is a text, as it stands there without its quotes.
///
/// # Errors
/// The text is not YAML, or more than one document.
pub fn parse(text: &str) -> Result<Value, NotYaml> {
    let options = serde_saphyr::options! { with_snippet: false, non_finite_float_policy: NonFiniteFloatPolicy::PassThrough };
    serde_saphyr::from_str_with_options::<Spanned<Node>>(text, options)
        .map(|root| root.value.into_value(&root.defined, text))
        .map_err(|error| NotYaml(error.without_snippet().to_string()))
}

/// What a scalar of [`parse`] says as a boolean; none if it says neither.
pub fn flag(scalar: &str) -> Option<bool> {
    let is_one_of = |words: [&str; 4]| {
        words.iter().any(|word| {
            let (first, rest) = word.split_at(1);
            scalar == *word
                || scalar == word.to_uppercase()
                || scalar.strip_prefix(&first.to_uppercase()).is_some_and(|tail| tail == rest)
        })
    };
    if is_one_of(TRUE) { Some(true) } else { is_one_of(FALSE).then_some(false) }
}

/// A node whose scalars have not been read yet.
enum Node {
    Null,
    /// A scalar that the parser takes for a text.
    Text(String),
    /// A plain scalar that the parser takes for a number or a boolean: it stands in the source.
    Plain,
    List(Vec<Spanned<Node>>),
    Map(Vec<(String, Spanned<Node>)>),
}

impl Node {
    fn into_value(self, at: &Location, source: &str) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Text(text) => Value::String(text),
            Self::Plain => Value::String(written(at, source).unwrap_or_default().to_owned()),
            Self::List(items) => {
                items.into_iter().map(|item| item.value.into_value(&item.defined, source)).collect()
            }
            Self::Map(entries) => {
                let read = |(key, entry): (String, Spanned<Self>)| {
                    (key, entry.value.into_value(&entry.defined, source))
                };
                Value::Object(entries.into_iter().map(read).collect::<Map<_, _>>())
            }
        }
    }
}

/// The part of the source where a node stands. A string source always has it.
fn written<'a>(at: &Location, source: &'a str) -> Option<&'a str> {
    let span = at.span();
    let from = usize::try_from(span.byte_offset()?).ok()?;
    let length = usize::try_from(span.byte_len()?).ok()?;
    source.get(from..from + length).map(str::trim)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(text.to_owned()))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Plain)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Plain)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Plain)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Node, E> {
        Ok(Node::Plain)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Node, E> {
        Ok(Node::Plain)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Plain)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element()? {
            all.push(item);
        }
        Ok(Node::List(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut all = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            all.push(entry);
        }
        Ok(Node::Map(all))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::a_number("2024", "2024")]
    #[case::one_that_a_float_loses("1.10", "1.10")]
    #[case::an_exponent("1e3", "1e3")]
    #[case::leading_zeros("007", "007")]
    #[case::hexadecimal("0x1F", "0x1F")]
    #[case::beyond_64_bits(
        "340282366920938463463374607431768211456",
        "340282366920938463463374607431768211456"
    )]
    #[case::a_boolean("true", "true")]
    #[case::an_old_boolean("Yes", "Yes")]
    #[case::infinity(".inf", ".inf")]
    #[case::quoted("'2024'", "2024")]
    #[case::double_quoted("\"on\"", "on")]
    #[case::a_text("ä b", "ä b")]
    fn a_scalar_is_the_text_that_stands_there(#[case] written: &str, #[case] text: &str) {
        let document = format!("ü: x\nkey: {written}  # why\nlist: [{written}, a]\nin:\n- b: {written}\n");
        let read = parse(&document).expect("YAML");
        assert_eq!(read, json!({"ü": "x", "key": text, "list": [text, "a"], "in": [{"b": text}]}));
    }

    #[rstest]
    #[case("a:", json!({"a": null}))]
    #[case("a: ~", json!({"a": null}))]
    #[case("2024: b", json!({"2024": "b"}))]
    #[case("true: b", json!({"true": "b"}))]
    #[case("a: &x 1.10\nb: *x", json!({"a": "1.10", "b": "1.10"}))]
    #[case("17", json!("17"))]
    #[case("[]", json!([]))]
    fn documents(#[case] document: &str, #[case] value: Value) {
        assert_eq!(parse(document).expect("YAML"), value);
    }

    #[rstest]
    #[case("token: {s3cr3t")]
    #[case("token: s3cr3t: x")]
    #[case("\"s3cr3t")]
    #[case("a: s3cr3t\na: s3cr3t")]
    fn what_is_no_yaml_is_not_quoted(#[case] document: &str) {
        let error = parse(document).expect_err("no YAML").to_string();
        assert!(error.contains("line 1") || error.contains("line 2"), "{error}");
        assert!(!error.contains("s3cr3t"), "{error}");
    }

    #[rstest]
    #[case("true", Some(true))]
    #[case("ON", Some(true))]
    #[case("Yes", Some(true))]
    #[case("y", Some(true))]
    #[case("False", Some(false))]
    #[case("off", Some(false))]
    #[case("N", Some(false))]
    #[case("tRUE", None)]
    #[case("1", None)]
    #[case("", None)]
    fn flags(#[case] scalar: &str, #[case] says: Option<bool>) {
        assert_eq!(flag(scalar), says);
    }

    proptest! {
        #[test]
        fn every_plain_word_is_read_as_it_stands(word in "[A-Za-z0-9][A-Za-z0-9._-]{0,20}") {
            prop_assume!(!["null", "Null", "NULL"].contains(&&*word));
            prop_assert_eq!(parse(&format!("a: {word}")).expect("YAML"), json!({"a": word}));
        }
    }
}
