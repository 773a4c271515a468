//! Lists of names in the value of a flag.

/// A list of names; one empty name is how an empty list is written.
///
/// # Errors
/// One of several names is empty.
pub fn names(list: &[String]) -> Result<Vec<String>, EmptyName> {
    let names: Vec<_> = list.iter().map(|name| name.trim().to_owned()).collect();
    match list {
        [only] if only.is_empty() => Ok(Vec::new()),
        _ if names.iter().any(String::is_empty) => Err(EmptyName),
        _ => Ok(names),
    }
}

/// A list has a name that is empty.
#[derive(Debug, thiserror::Error)]
#[error("an empty name stands in the list")]
pub struct EmptyName;
