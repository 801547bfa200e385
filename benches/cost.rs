//! Prints the costs of the overlay, as Markdown: backing calls per operation, and requests to
//! redoxfs. `docs/cost.md` is the output of `cargo bench --bench cost`.

#[path = "../tests/cost/measure.rs"]
mod measure;
#[path = "../tests/cost/requests.rs"]
mod requests;

fn main() {
    println!(
        "# What the overlay costs

`cargo bench --bench cost` prints this page. The filesystem is one where a copy needs a sync; on ext4 and XFS
`write_through` takes its place.

## Backing calls

The tables count calls of the engine to its layers, for one operation. *Warm* is an overlay that has read every
directory and every object. *Cold* is a new overlay, with all calls that find the object. A number above the goal is
bold. For a part that is done once only, a copy-up or a marker, the *goal* allows 1 to 3 calls. `tests/cost.rs` fails
if a warm number is above its *limit*.
"
    );
    println!("| operation | goal | limit | warm | cold |\n| --- | --- | --- | --- | --- |");
    for row in measure::rows() {
        println!("{}", row.line());
    }
    println!(
        "
A mount on Linux with write-back leaves the times of files to the kernel, which dates each change by a request of its
own, and wants the attributes after it:
"
    );
    println!("| operation | goal | limit | warm | cold |\n| --- | --- | --- | --- | --- |");
    for row in measure::dated_rows() {
        println!("{}", row.line());
    }
    println!("\nA walk of a cold tree with two directories and 10 files in each layer:\n");
    println!("| lower layers | calls |\n| --- | --- |");
    for layers in [1, 4, 64] {
        println!("| {layers} | {} |", measure::cold_walk(layers));
    }
    println!("\nA deep directory in two layers, after 300 others, and then 20 directories in it:\n");
    println!("| directories above | calls for the first | for the 20 |\n| --- | --- | --- |");
    for depth in [100, 300, 600] {
        let [first, next] = measure::deep_steps(depth);
        println!("| {depth} | {first} | {next} |");
    }
    println!(
        "
## Requests on Redox

The table counts requests to redoxfs for one operation of a program. One column is for an overlay of two layers on
redoxfs, warm. The other is for redoxfs itself. The Redox simulator has this redoxfs. No thread waits for the answer
to a *close*.

The daemon's maker creates a file of another user with the ids of that user, and hands it over open. So that takes no
request more. `tests/cost.rs` fails if the overlay needs more than the *limit*.
"
    );
    println!("| operation | goal | ratio | limit | overlay | redoxfs itself |\n| --- | --- | --- | --- | --- | --- |");
    for row in requests::rows() {
        println!("{}", row.line());
    }
}
