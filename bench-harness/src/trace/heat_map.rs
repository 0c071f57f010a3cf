//! Where in the regions the faults are, as rows of shades.

/// 2 MiB of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Number of the region in the list.
    pub region: usize,
    pub offset_bytes: u64,
    pub faults: u64,
}

/// From nothing to the hottest.
const SHADES: [char; 10] = [' ', '.', ':', '-', '=', '+', '*', '#', '%', '@'];
/// The same as colours of the usual palette of 256: black, then from dark red to white.
const COLOURS: [u8; 10] = [232, 52, 88, 124, 160, 202, 208, 214, 226, 231];

/// One character for each group of so many areas.
#[derive(Debug, PartialEq, Eq)]
pub struct Map {
    pub areas_per_character: usize,
    pub rows: Vec<Vec<u64>>,
}

/// At most `width` characters in a row and at most `height` rows: as many areas share a character as that takes.
pub fn fold(faults: &[u64], width: usize, height: usize) -> Map {
    let (width, height) = (width.max(1), height.max(1));
    let areas_per_character = faults.len().div_ceil(width * height).max(1);
    let sums: Vec<u64> = faults.chunks(areas_per_character).map(|areas| areas.iter().sum()).collect();
    Map { areas_per_character, rows: sums.chunks(width).map(<[u64]>::to_vec).collect() }
}

/// Which shade a number of faults has beside the hottest. The scale is logarithmic: a factor of two is a step at the hot end and everywhere.
pub fn shade(faults: u64, hottest: u64) -> usize {
    let last = SHADES.len() - 1;
    if faults == 0 {
        return 0;
    }
    let below = (hottest.max(faults) as f64 / faults as f64).log2().floor();
    last.saturating_sub(below as usize).max(1)
}

/// A row as text; with colours as a terminal takes them.
pub fn row(faults: &[u64], hottest: u64, coloured: bool) -> String {
    let mut text = String::new();
    let mut last = None;
    for shade in faults.iter().map(|&faults| shade(faults, hottest)) {
        if coloured {
            if last != Some(shade) {
                text += &format!("\x1b[48;5;{}m", COLOURS[shade]);
                last = Some(shade);
            }
            text.push(' ');
        } else {
            text.push(SHADES[shade]);
        }
    }
    if coloured { text + "\x1b[0m" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_area_is_in_the_map_whatever_its_size() {
        for num in [0, 1, 7, 64, 1000, 4096] {
            let faults: Vec<u64> = (0..num).collect();
            for (width, height) in [(1, 1), (10, 2), (64, 8), (0, 0)] {
                let map = fold(&faults, width, height);
                assert_eq!(map.rows.iter().flatten().sum::<u64>(), faults.iter().sum::<u64>());
                assert!(map.rows.len() <= height.max(1) && map.rows.iter().all(|row| row.len() <= width.max(1)), "{num} {width} {height}");
            }
        }
        assert_eq!(fold(&[1, 2, 3, 4, 5], 2, 2), Map { areas_per_character: 2, rows: vec![vec![3, 7], vec![5]] });
    }

    #[test]
    fn shades_go_by_factors_of_two_and_no_fault_is_invisible() {
        assert_eq!((shade(0, 100), shade(100, 100), shade(49, 100), shade(1, u64::MAX)), (0, 9, 8, 1));
        assert!((1..1000).map(|faults| shade(faults, 1000)).is_sorted());
    }

    #[test]
    fn colours_change_where_shades_do_and_end_with_the_row() {
        assert_eq!(row(&[0, 8, 4], 8, false), " @%");
        assert_eq!(row(&[8, 8, 0], 8, true), "\x1b[48;5;231m  \x1b[48;5;232m \x1b[0m");
    }
}
