//! Which calls meet which fault. Pure: a set of rules, asked once for each call.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{call::Call, reply::Reply};

/// Which calls; what is absent selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Matcher {
    /// As in [`Call::verb`].
    pub verb: Option<String>,
    /// As in [`Call::resource`].
    pub resource: Option<String>,
    /// As in [`Call::name`].
    pub name: Option<String>,
}

/// What happens to a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Not forwarded; this answer in its place.
    Answer(Reply),
    /// Not forwarded, not answered while the rule lives; then the connection is cut.
    Hang,
    /// Not forwarded; the connection is cut.
    Cut,
    /// Forwarded; when the server has answered, the connection is cut.
    LoseReply,
    /// Forwarded so many milliseconds later.
    Delay(u64),
    /// Held while the rule lives, then forwarded; a caller that is gone by then is not.
    FreezeBefore,
    /// Forwarded; the server's answer is held while the rule lives.
    FreezeAfter,
}

/// A fault: which calls, which of them, what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Which calls.
    pub at: Matcher,
    /// So many of them pass first.
    #[serde(default)]
    pub skip: u32,
    /// So many meet the fault, the rest pass; `None` = all.
    #[serde(default)]
    pub limit: Option<u32>,
    /// What happens to them.
    pub action: Action,
}

impl Matcher {
    /// Calls of one verb on one resource.
    pub fn of(verb: &str, resource: &str) -> Self {
        Self { verb: Some(verb.to_owned()), resource: Some(resource.to_owned()), name: None }
    }

    /// Calls of one gRPC method.
    pub fn of_method(method: &str) -> Self {
        Self { resource: Some(method.to_owned()), ..Self::default() }
    }

    /// The same for one object.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }

    /// Whether it selects `call`.
    pub fn selects(&self, call: &Call) -> bool {
        let fits =
            |wanted: &Option<String>, is: Option<&str>| wanted.as_deref().is_none_or(|w| is == Some(w));
        fits(&self.verb, Some(&call.verb))
            && fits(&self.resource, Some(&call.resource))
            && fits(&self.name, call.name.as_deref())
    }
}

impl Rule {
    /// Each call that `at` selects meets `action`.
    pub fn each(at: Matcher, action: Action) -> Self {
        Self { at, skip: 0, limit: None, action }
    }

    /// The next call that `at` selects meets `action`.
    pub fn once(at: Matcher, action: Action) -> Self {
        Self { at, skip: 0, limit: Some(1), action }
    }
}

/// The rules in force, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Rules {
    next: u64,
    active: BTreeMap<u64, Active>,
}

#[derive(Debug)]
struct Active {
    rule: Rule,
    passed: u32,
    met: u32,
}

impl Rules {
    /// Puts a rule in force; its id.
    pub(super) fn add(&mut self, rule: Rule) -> u64 {
        let id = self.next;
        self.next += 1;
        self.active.insert(id, Active { rule, passed: 0, met: 0 });
        id
    }

    /// Takes a rule away.
    pub(super) fn remove(&mut self, id: u64) {
        self.active.remove(&id);
    }

    /// What becomes of `call`: the oldest rule that selects it and is due decides; younger ones do not see the call then.
    pub(super) fn decide(&mut self, call: &Call) -> Option<(u64, Action)> {
        self.active
            .iter_mut()
            .find_map(|(id, active)| active.meets(call).then(|| (*id, active.rule.action.clone())))
    }
}

impl Active {
    fn meets(&mut self, call: &Call) -> bool {
        if !self.rule.at.selects(call) || self.rule.limit.is_some_and(|limit| self.met >= limit) {
            return false;
        }
        if self.passed < self.rule.skip {
            self.passed += 1;
            return false;
        }
        self.met += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(verb: &str, name: &str) -> Call {
        Call { verb: verb.to_owned(), resource: "datavolumes".to_owned(), name: Some(name.to_owned()) }
    }

    #[test]
    fn a_rule_meets_the_calls_after_skip_up_to_limit() {
        let mut rules = Rules::default();
        let at = Matcher::of("get", "datavolumes").named("a");
        rules.add(Rule { at, skip: 1, limit: Some(2), action: Action::Cut });
        let met: Vec<bool> = (0..5).map(|_| rules.decide(&call("get", "a")).is_some()).collect();
        assert_eq!(met, [false, true, true, false, false]);
        assert!(rules.decide(&call("get", "b")).is_none() && rules.decide(&call("delete", "a")).is_none());
    }

    #[test]
    fn the_oldest_rule_decides_and_a_removed_one_no_more() {
        let mut rules = Rules::default();
        let first = rules.add(Rule::once(Matcher::default(), Action::Cut));
        let second = rules.add(Rule::once(Matcher::default(), Action::Hang));
        assert_eq!(rules.decide(&call("get", "a")), Some((first, Action::Cut)));
        assert_eq!(rules.decide(&call("get", "a")), Some((second, Action::Hang)));
        assert_eq!(rules.decide(&call("get", "a")), None);
        let third = rules.add(Rule::each(Matcher::default(), Action::LoseReply));
        rules.remove(third);
        assert_eq!(rules.decide(&call("get", "a")), None);
    }

    #[test]
    fn a_rule_is_written_and_read() {
        let rule = Rule::once(Matcher::of_method("CreateVolume"), Action::Answer(Reply::grpc(14, "away")));
        let text = serde_json::to_string(&rule).unwrap();
        assert_eq!(serde_json::from_str::<Rule>(&text).unwrap(), rule);
    }
}
