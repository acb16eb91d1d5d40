//! The NVML calls that fill a buffer, with bounds of our own: the wrapper believes the driver's lengths, and that its texts end. A driver
//! in a bad state has been seen to answer anything; then a reading is missing, and the agent goes on.

use std::ffi::{c_char, c_uint};
use std::mem::MaybeUninit;
use std::ptr::null_mut;

use nvml_wrapper::enum_wrappers::device::{SampleValueType, Sampling};
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try, nvml_try_count};
use nvml_wrapper::struct_wrappers::device::{ProcessInfo, ProcessUtilizationSample, Sample};
use nvml_wrapper::{Device, Nvml};

/// Longest text, in bytes (`NVML_DEVICE_NAME_V2_BUFFER_SIZE`, and the same for a UUID).
const TEXT_BYTES_MAX: usize = 96;
/// Most entries of a list: far more than a device has samples, or a machine has processes on one.
const LIST_MAX: c_uint = 16_384;
/// A list may grow between the call that counts and the call that fetches.
const LIST_HEADROOM: c_uint = 5;
/// `NVML_ERROR_INSUFFICIENT_SIZE`.
const INSUFFICIENT_SIZE: c_uint = 7;

/// Which list of processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Processes {
    /// With a compute context.
    Compute,
    /// The same, by the call of a driver before 510.
    ComputeV2,
    /// With a graphics context.
    Graphics,
    /// Of an MPS server.
    Mps,
}

/// `nvmlDeviceGetUUID`.
#[expect(unsafe_code, reason = "the device's handle, for a call of the driver")]
pub(super) fn uuid(nvml: &Nvml, device: &Device<'_>) -> Result<String, NvmlError> {
    // SAFETY: the handle is used while `device` and its library live.
    text(*nvml_sym(nvml.lib().nvmlDeviceGetUUID.as_ref())?, unsafe { device.handle() })
}

/// `nvmlDeviceGetName`.
#[expect(unsafe_code, reason = "the device's handle, for a call of the driver")]
pub(super) fn name(nvml: &Nvml, device: &Device<'_>) -> Result<String, NvmlError> {
    // SAFETY: the handle is used while `device` and its library live.
    text(*nvml_sym(nvml.lib().nvmlDeviceGetName.as_ref())?, unsafe { device.handle() })
}

/// `nvmlDeviceGet…RunningProcesses`.
#[expect(unsafe_code, reason = "a call of the driver with a buffer, whose length it is told")]
pub(super) fn processes(nvml: &Nvml, device: &Device<'_>, which: Processes) -> Result<Vec<ProcessInfo>, NvmlError> {
    let lib = nvml.lib();
    // SAFETY: the handle is used while `device` and its library live.
    let device = unsafe { device.handle() };
    match which {
        Processes::Compute => {
            let call = *nvml_sym(lib.nvmlDeviceGetComputeRunningProcesses_v3.as_ref())?;
            // SAFETY: see `list`.
            list(process_count, |count, into| unsafe { call(device, count, into) }).map(infos)
        }
        Processes::ComputeV2 => {
            let call = *nvml_sym(lib.nvmlDeviceGetComputeRunningProcesses_v2.as_ref())?;
            // SAFETY: see `list`.
            list(process_count, |count, into| unsafe { call(device, count, into) }).map(infos)
        }
        Processes::Graphics => {
            let call = *nvml_sym(lib.nvmlDeviceGetGraphicsRunningProcesses_v3.as_ref())?;
            // SAFETY: see `list`.
            list(process_count, |count, into| unsafe { call(device, count, into) }).map(infos)
        }
        Processes::Mps => {
            let call = *nvml_sym(lib.nvmlDeviceGetMPSComputeRunningProcesses_v3.as_ref())?;
            // SAFETY: see `list`.
            list(process_count, |count, into| unsafe { call(device, count, into) }).map(infos)
        }
    }
}

/// `nvmlDeviceGetSamples` of the utilisation, newer than `since_us`.
#[expect(unsafe_code, reason = "a call of the driver with a buffer, whose length it is told")]
pub(super) fn samples(nvml: &Nvml, device: &Device<'_>, since_us: u64) -> Result<Vec<Sample>, NvmlError> {
    let call = *nvml_sym(nvml.lib().nvmlDeviceGetSamples.as_ref())?;
    // SAFETY: the handle is used while `device` and its library live.
    let device = unsafe { device.handle() };
    let mut kind = 0;
    // SAFETY: see `list`; `kind` lives as long as the call.
    let samples =
        list(any_count, |count, into| unsafe { call(device, Sampling::GpuUtilization.as_c(), since_us, &raw mut kind, count, into) })?;
    let kind = SampleValueType::try_from(kind)?;
    Ok(samples.into_iter().map(|sample| Sample::from_tag_and_struct(&kind, sample)).collect())
}

/// `nvmlDeviceGetProcessUtilization`, newer than `since_us`.
#[expect(unsafe_code, reason = "a call of the driver with a buffer, whose length it is told")]
pub(super) fn utilization(nvml: &Nvml, device: &Device<'_>, since_us: u64) -> Result<Vec<ProcessUtilizationSample>, NvmlError> {
    let call = *nvml_sym(nvml.lib().nvmlDeviceGetProcessUtilization.as_ref())?;
    // SAFETY: the handle is used while `device` and its library live.
    let device = unsafe { device.handle() };
    // SAFETY: see `list`.
    let samples = list(any_count, |count, into| unsafe { call(device, into, count, since_us) })?;
    Ok(samples.into_iter().map(ProcessUtilizationSample::from).collect())
}

fn infos<T>(list: Vec<T>) -> Vec<ProcessInfo>
where
    ProcessInfo: From<T>,
{
    list.into_iter().map(ProcessInfo::from).collect()
}

/// An empty list of processes is a success, one that is not is too long for no room.
fn process_count(code: c_uint, count: c_uint) -> Result<c_uint, NvmlError> {
    if code == INSUFFICIENT_SIZE { Ok(count) } else { nvml_try(code).map(|()| 0) }
}

fn any_count(code: c_uint, count: c_uint) -> Result<c_uint, NvmlError> {
    nvml_try_count(code).map(|()| count)
}

/// Counts, makes room within [`LIST_MAX`], and fetches. `call` is given the length of the buffer and the buffer; no length means no buffer.
#[expect(unsafe_code, reason = "the entries are plain numbers of C, for which all bits zero are a value")]
fn list<T>(
    counted: fn(c_uint, c_uint) -> Result<c_uint, NvmlError>,
    mut call: impl FnMut(*mut c_uint, *mut T) -> c_uint,
) -> Result<Vec<T>, NvmlError> {
    let mut count: c_uint = 0;
    let code = call(&raw mut count, null_mut());
    let room = match counted(code, count)? {
        0 => return Ok(Vec::new()),
        count => count.saturating_add(LIST_HEADROOM).min(LIST_MAX),
    };
    // SAFETY: `T` is one of NVML's structs: integers, and a union of numbers.
    let mut list: Vec<T> = (0..room).map(|_| unsafe { MaybeUninit::zeroed().assume_init() }).collect();
    let mut held = room;
    nvml_try(call(&raw mut held, list.as_mut_ptr()))?;
    list.truncate(usize::try_from(held).unwrap_or(usize::MAX));
    Ok(list)
}

/// A text of the driver's; the buffer has one byte more than the driver is told of, which stays zero.
#[expect(unsafe_code, reason = "a call of the driver with a buffer, whose length it is told")]
fn text<H>(call: unsafe extern "C" fn(H, *mut c_char, c_uint) -> c_uint, device: H) -> Result<String, NvmlError> {
    let mut buffer = [0 as c_char; TEXT_BYTES_MAX + 1];
    let told = c_uint::try_from(TEXT_BYTES_MAX).unwrap_or(0);
    // SAFETY: the buffer is longer than the driver is told.
    nvml_try(unsafe { call(device, buffer.as_mut_ptr(), told) })?;
    let bytes: Vec<u8> = buffer.iter().take_while(|byte| **byte != 0).map(|byte| byte.to_ne_bytes()[0]).collect();
    Ok(std::str::from_utf8(&bytes)?.to_owned())
}
