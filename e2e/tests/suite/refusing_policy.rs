//! A policy of the infra API server that refuses requests, as an operator's policy or quota would.

use anyhow::Result;
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};

use crate::fixture::Fixture;

/// The policy of one test. It is in force some time after it was made.
pub struct RefusingPolicy<'a> {
    fixture: &'a Fixture,
}

impl<'a> RefusingPolicy<'a> {
    /// Makes the policy: requests of `rule` that fulfil all `conditions` are refused with `message`.
    pub async fn of(fixture: &'a Fixture, rule: Value, conditions: Value, message: &str) -> Result<Self> {
        let name = &fixture.word;
        let policy = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [rule]},
                "matchConditions": conditions,
                "validations": [{"expression": "false", "message": message}],
            },
        }))?;
        let binding = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        }))?;
        let made = Self { fixture };
        made.policies().create(&PostParams::default(), &policy).await?;
        made.bindings().create(&PostParams::default(), &binding).await?;
        Ok(made)
    }

    /// Keeps the policy if it came into force, and removes it if not.
    pub async fn once_in_force(self, in_force: Result<()>) -> Result<Self> {
        match in_force {
            Ok(()) => Ok(self),
            Err(error) => {
                self.release().await?;
                Err(error)
            }
        }
    }

    /// Removes the policy.
    pub async fn release(self) -> Result<()> {
        let name = &self.fixture.word;
        self.bindings().delete(name, &DeleteParams::default()).await?;
        self.policies().delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    fn policies(&self) -> Api<ValidatingAdmissionPolicy> {
        Api::all(self.fixture.infra.clone())
    }

    fn bindings(&self) -> Api<ValidatingAdmissionPolicyBinding> {
        Api::all(self.fixture.infra.clone())
    }
}
