//! The faults of infra storage, and about which calls they are. Pure.

use serde::{Deserialize, Serialize};
use tonic::Code;

use super::{plan::Refusal, pool::Volume};
use crate::simulator::fault_plan::{Hold, selects};

/// The faults that the infra storage can inject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// An operation comes late, or not at all.
    Hold {
        /// How late.
        hold: Hold,
        /// Which operation.
        #[serde(default)]
        of: Operation,
        /// On which volumes.
        #[serde(default)]
        at: Selector,
    },
    /// An operation fails with this gRPC answer.
    Refuse {
        /// The gRPC code's name, `InvalidArgument`; a name that gRPC does not have is `Unknown`.
        code: String,
        /// The message.
        message: String,
        /// Which operation.
        #[serde(default)]
        of: Operation,
        /// On which volumes.
        #[serde(default)]
        at: Selector,
    },
    /// A class has only so many bytes for all its volumes; a volume that exceeds them fails with `ResourceExhausted`.
    Capacity {
        /// The storage class.
        class: String,
        /// The bytes.
        bytes: u64,
    },
    /// A snapshot is cut at the first call, and ready only after so many more.
    Unready {
        /// The number of calls that are answered with a snapshot that is not ready.
        calls: u32,
        /// Of which volumes.
        #[serde(default)]
        at: Selector,
    },
}

/// What the storage is asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Make a volume, of whatever content.
    #[default]
    Create,
    /// Make a volume from a snapshot or from another volume.
    Clone,
    /// Make a volume larger.
    Expand,
    /// Take a snapshot of a volume.
    Snapshot,
}

/// Which volumes a fault is about; what is absent selects all. A claim that CDI populates is provisioned under the name of
/// CDI's own claim, `prime-<uid>` or `tmp-pvc-<uid>`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selector {
    /// The namespace of the claim for which the volume was made.
    pub namespace: Option<String>,
    /// Its storage class.
    pub class: Option<String>,
    /// Its name.
    pub claim: Option<String>,
}

impl Selector {
    fn selects(&self, volume: &Volume) -> bool {
        selects(self.namespace.as_deref(), &volume.namespace)
            && selects(self.class.as_deref(), &volume.class)
            && selects(self.claim.as_deref(), &volume.claim)
    }
}

/// How long the operation on `volume` is held up: all the faults that say so.
pub(super) fn holds(faults: &[Fault], of: Operation, volume: &Volume) -> Vec<Hold> {
    let holds = faults.iter().filter_map(|fault| match fault {
        Fault::Hold { hold, of: held, at } if *held == of && at.selects(volume) => Some(*hold),
        _ => None,
    });
    holds.collect()
}

/// The refusal of an operation on `volume`, by the first fault that says so.
pub(super) fn refusal(faults: &[Fault], of: Operation, volume: &Volume) -> Option<Refusal> {
    faults.iter().find_map(|fault| match fault {
        Fault::Refuse { code, message, of: refused, at } if *refused == of && at.selects(volume) => {
            Some(Refusal { code: code_named(code), message: message.clone() })
        }
        _ => None,
    })
}

/// The bytes that all volumes of a class may have together, if they are limited.
pub(super) fn capacity(faults: &[Fault], class: &str) -> Option<u64> {
    let limits = faults.iter().filter_map(|fault| match fault {
        Fault::Capacity { class: full, bytes } if full == class => Some(*bytes),
        _ => None,
    });
    limits.min()
}

/// After how many calls a snapshot of `volume` is ready; 0 is at once.
pub(super) fn unready_calls(faults: &[Fault], volume: &Volume) -> u32 {
    let calls = faults.iter().filter_map(|fault| match fault {
        Fault::Unready { calls, at } if at.selects(volume) => Some(*calls),
        _ => None,
    });
    calls.max().unwrap_or_default()
}

/// The gRPC code of that name, as Go's `codes` package and Rust's `Code` write it.
fn code_named(name: &str) -> Code {
    const LAST: i32 = Code::Unauthenticated as i32;
    (1..=LAST).map(Code::from_i32).find(|code| format!("{code:?}") == name).unwrap_or(Code::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(class: &str) -> Volume {
        Volume { class: class.into(), namespace: "ns".into(), claim: "c".into(), ..Volume::default() }
    }

    #[test]
    fn faults_are_plain_json_and_about_creation_unless_they_say_otherwise() {
        let text = r#"{"refuse": {"code": "InvalidArgument", "message": "no", "at": {"class": "slow"}}}"#;
        let faults = [serde_json::from_str(text).expect("a fault")];
        let told = refusal(&faults, Operation::Create, &volume("slow")).expect("refused");
        assert_eq!((told.code, told.message.as_str()), (Code::InvalidArgument, "no"));
        assert!(refusal(&faults, Operation::Create, &volume("fast")).is_none());
        assert!(refusal(&faults, Operation::Snapshot, &volume("slow")).is_none());
        let unknown = r#"{"refuse": {"code": "x", "message": "", "at": {"clas": "slow"}}}"#;
        assert!(serde_json::from_str::<Fault>(unknown).is_err(), "a misspelt selector would select all");
    }

    #[test]
    fn each_operation_has_its_own_faults() {
        let operations = [Operation::Create, Operation::Clone, Operation::Expand, Operation::Snapshot];
        for refused in operations {
            let faults = [
                Fault::Refuse {
                    code: "Internal".into(),
                    message: "broken".into(),
                    of: refused,
                    at: Selector::default(),
                },
                Fault::Hold { hold: Hold::Forever, of: refused, at: Selector::default() },
            ];
            for asked in operations {
                assert_eq!(refusal(&faults, asked, &volume("a")).is_some(), asked == refused);
                assert_eq!(holds(&faults, asked, &volume("a")).is_empty(), asked != refused);
            }
        }
    }

    #[test]
    fn every_code_has_its_name() {
        for code in (1..=16).map(Code::from_i32) {
            assert_eq!(code_named(&format!("{code:?}")), code);
        }
        assert_eq!(code_named("Ok"), Code::Unknown, "no refusal");
        assert_eq!(code_named("resource exhausted"), Code::Unknown);
    }

    #[test]
    fn the_tightest_limit_and_the_longest_wait_count() {
        let faults = [
            Fault::Capacity { class: "a".into(), bytes: 5 },
            Fault::Capacity { class: "a".into(), bytes: 3 },
            Fault::Unready { calls: 2, at: Selector::default() },
            Fault::Unready { calls: 4, at: Selector { claim: Some("other".into()), ..Selector::default() } },
        ];
        assert_eq!((capacity(&faults, "a"), capacity(&faults, "b")), (Some(3), None));
        assert_eq!(unready_calls(&faults, &volume("a")), 2);
        assert_eq!(unready_calls(&[], &volume("a")), 0);
    }
}
