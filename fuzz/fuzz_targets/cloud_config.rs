//! The cloud-config. What is read again is the same; what is refused is refused in few words, which quote no line of it.
#![no_main]

use ccm::config::CloudConfig;
use fuzz::{assert_bounded, text};
use libfuzzer_sys::fuzz_target;
use serving::{chain, go_yaml};

fuzz_target!(|input: &[u8]| {
    let Some(text) = text(input) else { return };
    if let Err(error) = go_yaml::parse(text) {
        assert_bounded(&chain(&error));
    }
    match CloudConfig::parse(text) {
        Ok((config, unknown)) => {
            assert_eq!(CloudConfig::parse(text).ok(), Some((config.clone(), unknown)));
            let limits = &config.load_balancer.limits;
            for limit in [limits.ports, limits.source_ranges, limits.annotation_bytes] {
                assert_ne!(limit, Some(0), "0 is no limit");
            }
            for (key, value) in &config.infra_labels {
                assert!(
                    text.contains(key.as_str()) || text.contains(['\\', '"', '\'', '&', '\n']),
                    "{key}: {value}"
                );
            }
        }
        Err(error) => assert_bounded(&chain(&error)),
    }
});
