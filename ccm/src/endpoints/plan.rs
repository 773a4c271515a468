//! What to write so that an infra Service has the endpoints that it should have. Pure. After its plan was carried out,
//! it plans nothing.
//!
//! Endpoints stay in the slice in which they are, so that a change rewrites as few slices as possible. A handover of a
//! Service between us and infra's own controllers leaves no gap: the new writer writes first, then the selector
//! changes, then what the old writer left is deleted.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    handover::Writer,
    infra::{
        mirrors::InfraService,
        slices::{Content, Endpoint, InfraSlice, Manager},
    },
    wire::ip_family::Family,
};

/// Endpoints per slice (Kubernetes' default of `--max-endpoints-per-slice`).
pub const MAX_ENDPOINTS: usize = 100;

/// What is known of one infra Service.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// The Service.
    pub service: &'a InfraService,
    /// Which program should write its endpoints.
    pub writer: Writer,
    /// Whether we may delete what the selector's controllers leave behind. If not, a Service that has a selector keeps
    /// it.
    pub may_convert: bool,
    /// All slices of the Service.
    pub slices: &'a [InfraSlice],
    /// The endpoints that it should have.
    pub wanted: &'a BTreeMap<Family, Vec<Endpoint>>,
}

/// What to do, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The calls.
    pub steps: Vec<Step>,
    /// Whether the Service can do without its selector: our slices are as they should be, or it has no selector.
    pub is_written: bool,
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Create a slice.
    Create {
        /// Its name.
        name: String,
        /// Its family.
        family: Family,
        /// What to write into it.
        content: Content,
    },
    /// Replace one of our slices.
    Replace {
        /// Its name.
        name: String,
        /// The resourceVersion that it replaces.
        version: String,
        /// Its family.
        family: Family,
        /// What to write into it.
        content: Content,
    },
    /// Delete one of our slices that is empty or not needed.
    Drop {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
    },
    /// Delete the older kind Endpoints, which infra would copy into slices.
    RemoveEndpoints,
    /// Delete a slice that the previous writer left behind. Only after a fresh read.
    Remove {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
    },
}

impl Step {
    /// Whether the Service loses endpoints if no other program has written them. Such a step needs a fresh read first.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::RemoveEndpoints | Self::Remove { .. })
    }
}

/// What to do about one Service.
pub fn plan(observed: &Observed<'_>) -> Plan {
    let has_selector = !observed.service.spec.selector.is_empty();
    let writer = match observed.writer {
        Writer::Ours if has_selector && !observed.may_convert => Writer::Infra,
        writer => writer,
    };
    let of_infra = |slice: &&InfraSlice| slice.manager == Manager::Infra;
    let infra_ready = observed.slices.iter().filter(of_infra).any(|slice| slice.is_ready);
    let ours_ready = observed.ours().any(|slice| slice.is_ready);
    match writer {
        Writer::Others => {
            // What we or infra's controllers wrote before is out of date: VMs that are gone stay backends (kubernetes#118376).
            let is_other = |slice: &InfraSlice| slice.manager == Manager::Other && slice.is_ready;
            if has_selector || !observed.slices.iter().any(is_other) {
                return Plan::default();
            }
            let ours = observed.ours().map(removal);
            Plan { steps: ours.chain(observed.left_behind()).collect(), is_written: false }
        }
        Writer::Infra => {
            let taken_over = has_selector && observed.slices.iter().any(|slice| of_infra(&slice));
            if observed.ours().next().is_none() {
                Plan::default()
            } else if taken_over && (infra_ready || !ours_ready) {
                Plan { steps: observed.ours().map(removal).collect(), is_written: false }
            } else {
                // Infra's controllers have not taken over yet, so keep ours up to date.
                Plan { steps: observed.differences(), is_written: false }
            }
        }
        Writer::Ours => {
            let steps = observed.differences();
            if !steps.is_empty() {
                return Plan { steps, is_written: !has_selector };
            }
            if has_selector {
                return Plan { steps, is_written: ours_ready || !infra_ready };
            }
            Plan { steps: observed.left_behind(), is_written: true }
        }
    }
}

fn removal(slice: &InfraSlice) -> Step {
    Step::Remove { name: slice.name.clone(), uid: slice.uid.clone() }
}

impl Observed<'_> {
    /// Our slices of this Service object. Those of another owner are deleted together with that owner.
    fn ours(&self) -> impl Iterator<Item = &InfraSlice> {
        let owner = self.service.metadata.uid.as_deref();
        self.slices.iter().filter(move |slice| {
            slice.manager == Manager::Ours && slice.owner.as_deref().is_none_or(|uid| Some(uid) == owner)
        })
    }

    /// The steps that delete what the selector's controllers left.
    fn left_behind(&self) -> Vec<Step> {
        let left: Vec<_> = self.slices.iter().filter(|slice| slice.manager == Manager::Infra).collect();
        if left.is_empty() || !self.may_convert {
            return Vec::new();
        }
        std::iter::once(Step::RemoveEndpoints).chain(left.into_iter().map(removal)).collect()
    }

    fn differences(&self) -> Vec<Step> {
        let families: BTreeSet<_> =
            self.service.spec.ip_families.iter().filter_map(|text| Family::parse(text)).collect();
        let none = Vec::new();
        let mut steps = Vec::new();
        for family in &families {
            self.fit(*family, self.wanted.get(family).unwrap_or(&none), &mut steps);
        }
        let other = |slice: &&InfraSlice| slice.family.is_none_or(|family| !families.contains(&family));
        steps.extend(self.ours().filter(other).map(surplus));
        // Write the new slices before the old ones are deleted.
        steps.sort_by_key(|step| matches!(step, Step::Drop { .. }));
        steps
    }

    /// The steps that make our slices of one family hold exactly `wanted`.
    fn fit(&self, family: Family, wanted: &[Endpoint], steps: &mut Vec<Step>) {
        let mut present: Vec<_> = self.ours().filter(|slice| slice.family == Some(family)).collect();
        present.sort_by(|a, b| a.name.cmp(&b.name));
        let mut left: BTreeMap<&str, &Endpoint> = wanted.iter().map(|it| (it.vm.as_str(), it)).collect();
        let mut filled: Vec<Vec<Endpoint>> = Vec::new();
        for slice in &present {
            let had = slice.content.iter().flat_map(|content| &content.endpoints);
            let stay = had.filter_map(|endpoint| left.remove(endpoint.vm.as_str()).cloned());
            filled.push(stay.take(MAX_ENDPOINTS).collect());
        }
        let mut left = left.into_values().cloned();
        for endpoints in &mut filled {
            let room = MAX_ENDPOINTS.saturating_sub(endpoints.len());
            endpoints.extend(left.by_ref().take(room));
        }
        let more: Vec<Endpoint> = left.collect();
        filled.extend(more.chunks(MAX_ENDPOINTS).map(<[_]>::to_vec));
        if filled.is_empty() {
            // An empty slice shows that there are no endpoints, and that this was checked.
            filled.push(Vec::new());
        }
        let some = filled.iter().any(|endpoints| !endpoints.is_empty());
        let mut kept = 0;
        for (place, endpoints) in filled.into_iter().enumerate() {
            let is_needed = !endpoints.is_empty() || (!some && kept == 0);
            kept += usize::from(is_needed);
            let slice = present.get(place).copied();
            match slice {
                Some(slice) if !is_needed => steps.push(surplus(slice)),
                _ => steps.extend(self.write(slice, family, endpoints, steps)),
            }
        }
    }

    fn write(
        &self,
        slice: Option<&InfraSlice>,
        family: Family,
        endpoints: Vec<Endpoint>,
        planned: &[Step],
    ) -> Option<Step> {
        let (mut labels, ports) = (Content::labels(self.service), Content::ports(self.service));
        // Policies of infra label all objects. What they added stays, or each write would be undone without end.
        let present = slice.and_then(|slice| slice.content.as_ref());
        for (key, value) in present.into_iter().flat_map(|content| &content.labels) {
            labels.entry(key.clone()).or_insert_with(|| value.clone());
        }
        let content = Content { labels, ports, endpoints };
        let owner = self.service.metadata.uid.as_deref();
        match slice {
            None => Some(Step::Create { name: self.free_name(family, planned), family, content }),
            Some(slice) if slice.content.as_ref() == Some(&content) && slice.owner.as_deref() == owner => {
                None
            }
            Some(slice) => {
                let (name, version) = (slice.name.clone(), slice.version.clone());
                Some(Step::Replace { name, version, family, content })
            }
        }
    }

    /// The first name that no slice has. It is always the same for the same slices, so that two replicas create only
    /// one.
    fn free_name(&self, family: Family, planned: &[Step]) -> String {
        let service = self.service.metadata.name.as_deref().unwrap_or_default();
        let family = family.as_str().to_lowercase();
        let is_free = |candidate: &String| {
            let planned =
                planned.iter().any(|it| matches!(it, Step::Create { name, .. } if name == candidate));
            !planned && self.slices.iter().all(|slice| slice.name != *candidate)
        };
        let names = (0..).map(|number| format!("{service}-{family}-{number}"));
        names.into_iter().find(is_free).unwrap_or_default()
    }
}

fn surplus(slice: &InfraSlice) -> Step {
    Step::Drop { name: slice.name.clone(), uid: slice.uid.clone() }
}

#[cfg(test)]
mod tests;
