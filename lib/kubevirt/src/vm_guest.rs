//! Whose VM it is: the rule by which a VM is refused to a guest, from the labels of the VM and its VMI. Both programs follow
//! it: the CSI driver for volumes, the cloud controller manager for what it writes into Nodes and for backends.
//!
//! Several guests may share an infra namespace, and a guest's administrator chooses the node ids that its cluster asks
//! for. So a node id alone does not make a VM the guest's.

use std::collections::BTreeMap;

/// The labels that tell a guest's VMs from those of other guests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmGuest {
    /// Labels whose key, with another value, says that the VM is another guest's.
    known: BTreeMap<String, String>,
    /// Labels that the VM or its VMI must carry.
    required: BTreeMap<String, String>,
}

/// What the labels of a VM and its VMI say with one key, of which this guest's value is known. An object that does not exist,
/// or was not read, says nothing.
///
/// KubeVirt copies the labels of a VM's template, not those of the VM, to the VMI, so either may carry them. Another guest's
/// value on one of the two outweighs all else: whoever owns the infra namespace wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Labelled<'a> {
    /// Neither has the label.
    Nothing,
    /// One has this guest's value, or both have it.
    Ours,
    /// One has this value of another guest's.
    Another(&'a str),
}

impl<'a> Labelled<'a> {
    /// What the two labels say, of which `own` is this guest's value.
    pub fn of(own: &str, vm: Option<&'a str>, vmi: Option<&'a str>) -> Self {
        let mut values = [vm, vmi].into_iter().flatten();
        match values.clone().find(|value| *value != own) {
            Some(another) => Self::Another(another),
            None => values.next().map_or(Self::Nothing, |_| Self::Ours),
        }
    }
}

/// Why a VM is not this guest's. The text does not show the other guest's value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotThisGuest {
    /// A label has another guest's value.
    #[error(
        "it is another guest's: its label {key} is not {value:?}. If the VM is this guest's, the administrator of the infra cluster must correct the label"
    )]
    Another {
        /// The label's key.
        key: String,
        /// This guest's value.
        value: String,
    },
    /// A label that the operator demands is missing.
    #[error(
        "it does not carry the label {key}={value}, which --infra-vm-labels demands. If the VM is this guest's, the administrator of the infra cluster must label it"
    )]
    Unlabelled {
        /// The label's key.
        key: String,
        /// This guest's value.
        value: String,
    },
}

impl VmGuest {
    /// `own` are labels that a VM need not carry; `required` are labels that it must. Where both have a key, `required`
    /// counts.
    pub fn new(mut own: BTreeMap<String, String>, required: BTreeMap<String, String>) -> Self {
        own.extend(required.clone());
        Self { known: own, required }
    }

    /// Checks the labels of a VM and its VMI; an object that does not exist has none.
    ///
    /// # Errors
    /// One of the two carries another guest's value, or neither carries a label that is required.
    pub fn check(
        &self,
        vm: &BTreeMap<String, String>,
        vmi: &BTreeMap<String, String>,
    ) -> Result<(), NotThisGuest> {
        for (key, value) in &self.known {
            let [vm, vmi] = [vm, vmi].map(|labels| labels.get(key).map(String::as_str));
            match Labelled::of(value, vm, vmi) {
                Labelled::Another(_) => {
                    return Err(NotThisGuest::Another { key: key.clone(), value: value.clone() });
                }
                Labelled::Nothing if self.required.contains_key(key) => {
                    return Err(NotThisGuest::Unlabelled { key: key.clone(), value: value.clone() });
                }
                Labelled::Nothing | Labelled::Ours => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const CLUSTER: &str = "cluster.x-k8s.io/cluster-name";

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[rstest]
    #[case::nothing(None, None, Labelled::Nothing)]
    #[case::ours_by_the_vm(Some("a"), None, Labelled::Ours)]
    #[case::ours_by_the_vmi(None, Some("a"), Labelled::Ours)]
    #[case::another_by_the_vm(Some("b"), None, Labelled::Another("b"))]
    #[case::another_by_the_vmi(None, Some("b"), Labelled::Another("b"))]
    #[case::the_vm_contradicts(Some("b"), Some("a"), Labelled::Another("b"))]
    #[case::the_vmi_contradicts(Some("a"), Some("b"), Labelled::Another("b"))]
    #[case::no_value(Some(""), None, Labelled::Another(""))]
    fn another_guests_value_outweighs_ours(
        #[case] vm: Option<&str>,
        #[case] vmi: Option<&str>,
        #[case] said: Labelled<'_>,
    ) {
        assert_eq!(Labelled::of("a", vm, vmi), said);
    }

    #[rstest]
    #[case::unlabelled(&[], &[], true)]
    #[case::unrelated(&[("app", "db")], &[("kubevirt.io/nodeName", "n1")], true)]
    #[case::ours(&[("guest", "a")], &[("guest", "a")], true)]
    #[case::ours_by_its_vmi(&[], &[("guest", "a")], true)]
    #[case::another(&[("guest", "b")], &[], false)]
    #[case::another_by_its_vmi(&[], &[("guest", "b")], false)]
    #[case::contradictory(&[("guest", "a")], &[("guest", "b")], false)]
    #[case::empty_value(&[("guest", "")], &[], false)]
    #[case::our_cluster_name_is_not_known(&[(CLUSTER, "b")], &[], true)]
    fn a_label_with_another_value_refuses_the_vm(
        #[case] vm: &[(&str, &str)],
        #[case] vmi: &[(&str, &str)],
        #[case] ours: bool,
    ) {
        let guest = VmGuest::new(labels(&[("guest", "a")]), BTreeMap::new());
        assert_eq!(guest.check(&labels(vm), &labels(vmi)).is_ok(), ours);
    }

    #[rstest]
    #[case::unlabelled(&[], &[], "does not carry the label cluster.x-k8s.io/cluster-name=one")]
    #[case::another(&[(CLUSTER, "two")], &[], "its label cluster.x-k8s.io/cluster-name is not \"one\"")]
    #[case::another_by_its_vmi(&[(CLUSTER, "one")], &[(CLUSTER, "two")], "is not \"one\"")]
    #[case::another_by_the_other_label(&[(CLUSTER, "one"), ("guest", "b")], &[], "label guest is not \"a\"")]
    #[case::required_by_the_vmi(&[], &[(CLUSTER, "one")], "")]
    #[case::required_by_the_vm(&[(CLUSTER, "one")], &[], "")]
    fn a_required_label_must_be_there(
        #[case] vm: &[(&str, &str)],
        #[case] vmi: &[(&str, &str)],
        #[case] refusal: &str,
    ) {
        let guest = VmGuest::new(labels(&[("guest", "a")]), labels(&[(CLUSTER, "one")]));
        let refused = guest.check(&labels(vm), &labels(vmi)).map_err(|refusal| refusal.to_string());
        assert_eq!(refused.is_ok(), refusal.is_empty());
        if let Err(text) = refused {
            assert!(text.contains(refusal) && !text.contains("two"), "{text}");
        }
    }
}
