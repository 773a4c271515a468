//! The user who sends a request, in the form that an access review needs.

use std::collections::BTreeMap;

use k8s_openapi::api::authentication::v1::UserInfo;

/// A client without credentials (Kubernetes, "Anonymous requests").
const ANONYMOUS: &str = "system:anonymous";
/// The group of anonymous users.
const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The group of all other users.
const AUTHENTICATED: &str = "system:authenticated";

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    pub(crate) fn anonymous() -> Self {
        Self { name: ANONYMOUS.to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..Self::default() }
    }

    /// How many bytes its texts have.
    pub(crate) fn size(&self) -> usize {
        let texts = self.groups.iter().chain(self.extra.keys()).chain(self.extra.values().flatten());
        self.name.len() + self.uid.len() + texts.map(String::len).sum::<usize>()
    }

    /// Adds the group of all authenticated users, unless the groups already tell whether the user is authenticated
    /// (apiserver library, `AuthenticatedGroupAdder`).
    #[must_use]
    pub(crate) fn authenticated(mut self) -> Self {
        let known = |group: &String| [AUTHENTICATED, UNAUTHENTICATED].contains(&group.as_str());
        if self.name != ANONYMOUS && !self.groups.iter().any(known) {
            self.groups.push(AUTHENTICATED.to_owned());
        }
        self
    }
}

impl From<UserInfo> for User {
    fn from(user: UserInfo) -> Self {
        Self {
            name: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_of_a_user_counts() {
        let user = User {
            name: "ab".to_owned(),
            uid: "c".to_owned(),
            groups: vec!["def".to_owned()],
            extra: [("gh".to_owned(), vec!["i".to_owned(), "jk".to_owned()])].into(),
        };
        assert_eq!(user.size(), 11);
    }
}
