//! What a broker does between requests: it looks for changes that another broker on the same store
//! made, wraps data keys anew after a rotation, ends what the record need not remember, and renews
//! collateral before it ends.

use std::{sync::Arc, time::Duration};

use crate::{broker::Broker, file, retention};

/// Between two looks: others' changes are in force within twice this.
const LOOK: Duration = Duration::from_millis(400);

/// Between two lines that tell of those who asked too often.
const TELL: Duration = Duration::from_secs(1);

/// Each on its own, so that a long rotation or a long retention delays no change of a policy.
pub(crate) async fn run(broker: Arc<Broker>) {
    let collateral = Arc::clone(&broker.verifiers.collateral);
    tokio::join!(
        refresh(&broker),
        reload_keys(&broker),
        tell_refused(&broker),
        rewrap(&broker),
        retention::run(&broker),
        collateral.run()
    );
}

pub(crate) fn every(period: Duration) -> tokio::time::Interval {
    let mut looks = tokio::time::interval(period);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    looks
}

async fn refresh(broker: &Broker) {
    let mut looks = every(LOOK);
    loop {
        looks.tick().await;
        if let Err(error) = broker.rules.refresh().await {
            tracing::error!(%error, "changes of the store cannot be read");
        }
    }
}

/// One line for however many were refused.
async fn tell_refused(broker: &Broker) {
    let mut looks = every(TELL);
    loop {
        looks.tick().await;
        if let Some((count, last)) = broker.limiter.refused() {
            tracing::warn!(count, %last, "who asked too often was answered 429");
        }
    }
}

/// Where the files do not answer, the keys that are known stay, and all else goes on.
async fn reload_keys(broker: &Arc<Broker>) {
    let mut looks = every(LOOK);
    loop {
        looks.tick().await;
        let broker = Arc::clone(broker);
        let reload = move || {
            broker.store.reload_keys();
            broker.challenges.reload_keys();
        };
        file::aside("the keys of the store and of challenges", reload).await;
    }
}

async fn rewrap(broker: &Broker) {
    let mut looks = every(LOOK);
    let mut told = 0;
    loop {
        looks.tick().await;
        match broker.store.rewrap().await {
            Ok(done) if done.wrapped > 0 => {
                tracing::info!(count = done.wrapped, "data keys wrapped anew");
            }
            Ok(done) => {
                if let Some((path, version)) = done.first.filter(|_| done.passed_over != told) {
                    tracing::error!(
                        count = done.passed_over,
                        path,
                        version,
                        "data keys do not open under the master key that they name: set these resources \
                         again, or delete them"
                    );
                }
                told = done.passed_over;
            }
            Err(error) => tracing::error!(%error, "data keys cannot be wrapped anew"),
        }
    }
}
