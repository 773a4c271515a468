//! Which controllers run: the value of `--controllers`.

use std::str::FromStr;

/// One controller of this program, by the reference's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// `cloud-node-controller`: initialises Nodes and keeps their addresses.
    Node,
    /// `cloud-node-lifecycle-controller`: removes Nodes whose VM is gone.
    NodeLifecycle,
    /// `service-lb-controller`: LoadBalancer Services.
    Service,
    /// `node-route-controller`: accepted; there are no routes to make.
    Route,
    /// `kubevirt_eps_controller`: endpoints of infra Services.
    Endpoints,
}

/// The names of each controller: the reference's, then those that older manifests and habits use.
const NAMES: [(&str, Controller); 10] = [
    ("cloud-node-controller", Controller::Node),
    ("cloud-node-lifecycle-controller", Controller::NodeLifecycle),
    ("service-lb-controller", Controller::Service),
    ("node-route-controller", Controller::Route),
    ("kubevirt_eps_controller", Controller::Endpoints),
    ("cloud-node", Controller::Node),
    ("cloud-node-lifecycle", Controller::NodeLifecycle),
    ("service", Controller::Service),
    ("route", Controller::Route),
    ("kubevirt-eps-controller", Controller::Endpoints),
];

/// The choice of `--controllers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controllers {
    all: bool,
    /// In the order given; the first that names a controller decides (`genericcontrollermanager.IsControllerEnabled`).
    named: Vec<(Controller, bool)>,
}

/// A name is of no controller.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not in the list of known controllers: {list}", list = NAMES.map(|(name, _)| name)[..5].join(", "))]
pub struct UnknownController(String);

impl FromStr for Controllers {
    type Err = UnknownController;

    fn from_str(text: &str) -> Result<Self, UnknownController> {
        let mut controllers = Self { all: false, named: Vec::new() };
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            if item == "*" {
                controllers.all = true;
                continue;
            }
            let (name, wanted) = item.strip_prefix('-').map_or((item, true), |name| (name, false));
            let known = NAMES.iter().find(|(known, _)| *known == name);
            let (_, controller) = known.ok_or_else(|| UnknownController(name.to_owned()))?;
            controllers.named.push((*controller, wanted));
        }
        Ok(controllers)
    }
}

impl Controllers {
    /// Whether `controller` is to run.
    pub fn runs(&self, controller: Controller) -> bool {
        let named = self.named.iter().find(|(named, _)| *named == controller);
        named.map_or(self.all, |(_, wanted)| *wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("*", Controller::Service, true)]
    #[case("*,-service-lb-controller", Controller::Service, false)]
    #[case("*,-service-lb-controller", Controller::Node, true)]
    #[case("service-lb-controller", Controller::Service, true)]
    #[case("service-lb-controller", Controller::Node, false)]
    #[case("kubevirt_eps_controller", Controller::Endpoints, true)]
    #[case("-cloud-node,cloud-node,*", Controller::Node, false)]
    #[case("", Controller::Node, false)]
    fn the_first_that_names_a_controller_decides(
        #[case] text: &str,
        #[case] controller: Controller,
        #[case] runs: bool,
    ) {
        assert_eq!(text.parse::<Controllers>().unwrap().runs(controller), runs);
    }

    #[test]
    fn a_name_of_no_controller_is_refused_with_the_list() {
        let error = "*,-nodeipam".parse::<Controllers>().unwrap_err().to_string();
        assert!(error.contains("\"nodeipam\"") && error.contains("kubevirt_eps_controller"), "{error}");
    }
}
