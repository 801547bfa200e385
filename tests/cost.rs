//! Backing calls are the cost on Redox: fails if an operation comes to need more of them. `cargo
//! bench --bench cost` prints them all.

use overlayfs::layer::counted::Method;

#[path = "cost/measure.rs"]
mod measure;
#[path = "cost/requests.rs"]
mod requests;

#[test]
fn no_operation_costs_more_than_it_may() {
    let dear: Vec<_> =
        measure::rows().into_iter().filter(|row| row.warm.total() > row.most).map(|row| row.line()).collect();
    assert!(dear.is_empty(), "{dear:#?}");
}

#[test]
fn a_cold_walk_asks_each_layer_once_for_each_directory() {
    for layers in [1, 4, 64] {
        // The root and one directory are listed and asked for their marks in every layer, the
        // directory is opened in every layer, and every object is looked at.
        let most = 5 * layers as u64 + 1 + 10 * layers as u64;
        let walk = measure::cold_walk(layers);
        assert!(walk.total() <= most, "{layers} layers: {walk}, at most {most}");
    }
}

#[test]
fn a_step_far_below_opens_few_directories() {
    let [first, next] = measure::deep_steps(600);
    // Each directory on the way once in each layer, and then those near by.
    assert!(first.of(Method::OpenDir) <= 2 * 602, "{first}");
    assert!(next.of(Method::OpenDir) <= 2 * 20, "{next} for 20 directories");
}

#[test]
fn no_operation_asks_redoxfs_more_than_it_may() {
    let is_dear = |row: &requests::Row| row.overlay.total() > row.most;
    let dear: Vec<_> = requests::rows().into_iter().filter(is_dear).map(|row| row.line()).collect();
    assert!(dear.is_empty(), "{dear:#?}");
}
