//! What the authority tells people of an account unasked: an alert, a refill, storage that is detached. Nothing is decided by it.

use serde::{Deserialize, Serialize};

use super::id::PaymentId;
use super::ledger::{AccountNotice, DetachedStorage, PendingRefill, Storage, Threshold};
use super::money::Credits;

/// What is told. The order is the journal's format: append only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// The balance has reached a threshold. Told once for each, until it has been above it again.
    Alert {
        /// Which.
        threshold: Threshold,
        /// What is left.
        balance: Credits,
    },
    /// So much is to be paid in.
    Refill {
        /// By which payment.
        payment: PaymentId,
        /// How much.
        amount: Credits,
    },
    /// Its storage cannot be reached any more.
    StorageDetached {
        /// Does it still cost?
        costs: DetachedStorage,
    },
    /// Its storage can be reached again.
    StorageAttached,
}

impl News {
    /// As the ledger has it; none of what is for whoever runs the authority.
    #[must_use]
    pub fn of(notice: &AccountNotice) -> Option<News> {
        Some(match notice {
            AccountNotice::Alert { threshold, balance } => News::Alert { threshold: *threshold, balance: *balance },
            AccountNotice::Refill(PendingRefill { payment, amount, .. }) => News::Refill { payment: payment.clone(), amount: *amount },
            AccountNotice::Storage(Storage::Detached, costs) => News::StorageDetached { costs: *costs },
            AccountNotice::Storage(Storage::Attached, _) => News::StorageAttached,
            AccountNotice::Unproven { .. } | AccountNotice::Proven { .. } => return None,
        })
    }

    /// In one word.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            News::Alert { .. } => "alert",
            News::Refill { .. } => "refill",
            News::StorageDetached { .. } => "storage_detached",
            News::StorageAttached => "storage_attached",
        }
    }

    /// In a sentence, of an account that was named.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            News::Alert { threshold: Threshold::Percent(percent), balance } => {
                format!("{balance} credits are left, which is {percent} % of what there was, or less")
            }
            News::Alert { threshold: Threshold::Below(below), balance } => format!("{balance} credits are left, less than {below}"),
            News::Refill { payment, amount } => format!("{amount} credits are to be paid in, as {payment}"),
            News::StorageDetached { costs: DetachedStorage::Costs } => "its storage is to be detached, and still costs".to_owned(),
            News::StorageDetached { costs: DetachedStorage::Free } => "its storage is to be detached, and costs nothing".to_owned(),
            News::StorageAttached => "its storage is to be attached again".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d6_a8_an_alert_says_what_is_left_and_at_which_threshold() {
        let left: Credits = "9.5".parse().unwrap();
        let alert = |threshold| News::of(&AccountNotice::Alert { threshold, balance: left }).unwrap().text();
        assert_eq!(alert(Threshold::Percent(10)), "9.5 credits are left, which is 10 % of what there was, or less");
        assert_eq!(alert(Threshold::Below("10".parse().unwrap())), "9.5 credits are left, less than 10");
    }

    #[test]
    fn news_read_back_from_the_journal_and_from_text() {
        let refill = News::Refill { payment: "refill/lab/1".parse().unwrap(), amount: "500".parse().unwrap() };
        for news in [refill, News::StorageAttached, News::StorageDetached { costs: DetachedStorage::Free }] {
            let bytes = postcard::to_stdvec(&news).unwrap();
            assert_eq!(postcard::from_bytes::<News>(&bytes).as_ref(), Ok(&news));
            let text = serde_json::to_string(&news).unwrap();
            assert_eq!(serde_json::from_str::<News>(&text).unwrap(), news, "{text}");
        }
    }
}
