//! The mount flags of a capability: how they are split, and which are refused. The controller refuses them when a
//! volume is created, the node before it mounts.

/// Options that would make another mount than the requested one.
const REFUSED: &[&str] = &[
    "bind",
    "rbind",
    "move",
    "remount",
    "loop",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "private",
    "rprivate",
    "unbindable",
    "runbindable",
];

/// The options, in their order; an element of `mount_flags` may hold several, split by commas.
pub fn options<S: AsRef<str>>(mount_flags: &[S]) -> impl Iterator<Item = &str> {
    mount_flags.iter().flat_map(|flag| split_outside_quotes(flag.as_ref()))
}

/// Whether an option would change what is mounted, or has a quote that nothing ends: the options after it would be a part of it, or
/// not, depending on who reads the text.
pub fn is_refused(option: &str) -> bool {
    REFUSED.contains(&option) || option.starts_with("loop=") || option.matches('"').count() % 2 == 1
}

/// Splits at commas that are not inside double quotes: `SELinux` contexts carry commas (`context="…:s0:c1,c2"`).
fn split_outside_quotes(text: &str) -> Vec<&str> {
    let mut quoted = false;
    text.split(move |c| {
        if c == '"' {
            quoted = !quoted;
        }
        c == ',' && !quoted
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_split_outside_of_quotes() {
        let flags = ["noexec,discard", "context=\"u:r:t:s0:c1,c2\",nosuid", ""];
        let split: Vec<_> = options(&flags).collect();
        assert_eq!(split, ["noexec", "discard", "context=\"u:r:t:s0:c1,c2\"", "nosuid", ""]);
    }

    #[test]
    fn what_makes_another_mount_is_refused() {
        for option in ["bind", "remount", "loop=/dev/loop3", "rshared"] {
            assert!(is_refused(option), "{option}");
        }
        for option in ["context=\"u:r:t:s0", "noatime\",bind", "\""] {
            assert!(is_refused(option), "{option}");
        }
        for option in ["noatime", "ro", "loopback", "commit=30", "context=\"u:r:t:s0:c1,c2\"", ""] {
            assert!(!is_refused(option), "{option}");
        }
    }
}
