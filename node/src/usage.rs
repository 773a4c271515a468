//! How large a volume is and how much of it is used, as values.

/// Usage of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// In bytes.
    pub bytes: Amount,
    /// In inodes; `None` for filesystems that do not count them.
    pub inodes: Option<Amount>,
}

/// One measured quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amount {
    /// All.
    pub total: u64,
    /// Taken.
    pub used: u64,
    /// Free for ordinary users.
    pub available: u64,
}

/// Size of a block device in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity(pub u64);

impl Amount {
    /// From counts of units as statvfs(3) gives them; saturates instead of wrapping.
    pub fn new(total: u64, free: u64, available: u64, unit_bytes: u64) -> Self {
        Self {
            total: total.saturating_mul(unit_bytes),
            used: total.saturating_sub(free).saturating_mul(unit_bytes),
            available: available.saturating_mul(unit_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_do_not_wrap() {
        let amount = Amount::new(10, 4, 3, 4096);
        assert_eq!(amount, Amount { total: 40_960, used: 24_576, available: 12_288 });
        let odd = Amount::new(u64::MAX, u64::MAX, u64::MAX, 4096);
        assert_eq!(odd, Amount { total: u64::MAX, used: 0, available: u64::MAX });
        assert_eq!(Amount::new(1, 2, 0, 1).used, 0);
    }
}
