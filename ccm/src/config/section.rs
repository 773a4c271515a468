//! One map of the cloud-config. Its reader takes the known keys out one by one; the keys that remain are unknown.
//!
//! All scalars are texts here ([`go_yaml`]): the reader of a key says what its text means.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Map, Value};
use serving::go_yaml;

use super::ConfigError;

/// One map of the file, from which each known key is taken once.
pub(super) struct Section<'a> {
    pub(super) name: &'a str,
    pub(super) keys: Map<String, Value>,
}

impl<'a> Section<'a> {
    pub(super) fn of(name: &'a str, value: &Value) -> Result<Self, ConfigError> {
        match value {
            Value::Null => Ok(Self { name, keys: Map::new() }),
            Value::Object(keys) => Ok(Self { name, keys: keys.clone() }),
            other => Err(wrong(if name.is_empty() { "the text" } else { name }, "a map of keys", other)),
        }
    }

    pub(super) fn section(&mut self, key: &'a str) -> Result<Self, ConfigError> {
        Self::of(key, &self.take(key))
    }

    /// A section of this section; `name` is its full name.
    pub(super) fn section_of(&mut self, key: &str, name: &'a str) -> Result<Self, ConfigError> {
        Self::of(name, &self.take(key))
    }

    /// An absent key and a key without a value are the same, as in upstream's parser.
    pub(super) fn take(&mut self, key: &str) -> Value {
        self.keys.remove(key).unwrap_or_default()
    }

    pub(super) fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    pub(super) fn text(&mut self, key: &str) -> Result<String, ConfigError> {
        match self.take(key) {
            Value::Null => Ok(String::new()),
            Value::String(text) => Ok(text),
            other => Err(wrong(&self.path(key), "a text", &other)),
        }
    }

    pub(super) fn flag(&mut self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.take(key) {
            Value::Null => Ok(None),
            other => match other.as_str().and_then(go_yaml::flag) {
                Some(flag) => Ok(Some(flag)),
                None => Err(wrong(&self.path(key), "true or false", &other)),
            },
        }
    }

    /// A key that must have this one word or be absent: what the word stands for, or the default.
    pub(super) fn word<T: Default>(
        &mut self,
        key: &str,
        (word, value): (&'static str, T),
    ) -> Result<T, ConfigError> {
        match self.take(key) {
            Value::Null => Ok(T::default()),
            Value::String(text) if text == word => Ok(value),
            Value::String(text) => Err(ConfigError::Word { key: self.path(key), word, found: text }),
            other => Err(wrong(&self.path(key), "a text", &other)),
        }
    }

    /// Whole seconds. A value that is not positive means the default, as upstream has it (`HyperShift` writes 0).
    pub(super) fn seconds(&mut self, key: &str, default: Duration) -> Result<Duration, ConfigError> {
        let value = self.take(key);
        if value.is_null() {
            return Ok(default);
        }
        let seconds = number(&value).ok_or_else(|| wrong(&self.path(key), "whole seconds", &value))?;
        Ok(u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map_or(default, Duration::from_secs))
    }

    /// Whole seconds. A value that is not positive means never.
    pub(super) fn seconds_or_never(
        &mut self,
        key: &str,
        default: Duration,
    ) -> Result<Option<Duration>, ConfigError> {
        let never = self.keys.get(key).and_then(number).is_some_and(|seconds| seconds <= 0);
        let seconds = self.seconds(key, default)?;
        Ok((!never).then_some(seconds))
    }

    pub(super) fn list(&mut self, key: &str) -> Result<Vec<String>, ConfigError> {
        Ok(self.list_if_there(key)?.unwrap_or_default())
    }

    /// For a key whose empty list means something else than no list.
    pub(super) fn list_if_there(&mut self, key: &str) -> Result<Option<Vec<String>>, ConfigError> {
        let items = match self.take(key) {
            Value::Null => return Ok(None),
            Value::Array(items) => items,
            other => return Err(wrong(&self.path(key), "a list of texts", &other)),
        };
        let texts = items.into_iter().map(|item| match item {
            Value::String(text) => Ok(text),
            other => Err(wrong(&self.path(key), "a list of texts", &other)),
        });
        texts.collect::<Result<_, _>>().map(Some)
    }

    /// A map with values of any type; null where the key is absent.
    pub(super) fn take_map(&mut self, key: &str) -> Result<Value, ConfigError> {
        match self.take(key) {
            map @ (Value::Null | Value::Object(_)) => Ok(map),
            other => Err(wrong(&self.path(key), "a map of lists", &other)),
        }
    }

    pub(super) fn texts(&mut self, key: &str) -> Result<BTreeMap<String, String>, ConfigError> {
        let map = match self.take(key) {
            Value::Null => return Ok(BTreeMap::new()),
            Value::Object(map) => map,
            other => return Err(wrong(&self.path(key), "a map of texts", &other)),
        };
        map.into_iter()
            .map(|(name, value)| match value {
                Value::String(text) => Ok((name, text)),
                other => Err(wrong(&format!("{}.{name}", self.path(key)), "a text", &other)),
            })
            .collect()
    }

    /// A map of lists of texts.
    pub(super) fn lists(&mut self, key: &str) -> Result<BTreeMap<String, Vec<String>>, ConfigError> {
        let name = self.path(key);
        let mut lists = match self.take_map(key)? {
            Value::Object(keys) => Section { name: &name, keys },
            _ => return Ok(BTreeMap::new()),
        };
        let keys: Vec<String> = lists.keys.keys().cloned().collect();
        keys.into_iter().map(|key| Ok((key.clone(), lists.list(&key)?))).collect()
    }

    /// The keys that nothing has taken.
    pub(super) fn left(self) -> Vec<String> {
        let prefix = if self.name.is_empty() { String::new() } else { format!("{}.", self.name) };
        self.keys.into_iter().map(|(key, _)| format!("{prefix}{key}")).collect()
    }
}

/// A whole number, as it stands in the file.
fn number(value: &Value) -> Option<i64> {
    value.as_str()?.parse().ok()
}

pub(super) fn wrong(key: &str, wanted: &'static str, found: &Value) -> ConfigError {
    let found = match found {
        Value::Null => "empty".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a map".to_owned(),
        scalar => scalar.to_string(),
    };
    ConfigError::Type { key: key.to_owned(), wanted, found }
}
