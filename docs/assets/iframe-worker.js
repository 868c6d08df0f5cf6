/* Search where the pages are opened from a folder.
 *
 * A browser starts no worker for a page of a `file:` address. Here a hidden frame stands in for it: the
 * worker's script runs in the frame, whose window is the worker's global scope.
 */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.onmessage = null
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.scope = frame.contentWindow
      this.scope.postMessage = (data) => {
        const event = new MessageEvent("message", { data })
        this.onmessage?.(event)
        this.dispatchEvent(event)
      }
      const script = this.scope.document.createElement("script")
      // Messages that come before the script listens would be lost.
      this.ready = new Promise((resolve) => script.addEventListener("load", resolve))
      script.src = new URL(url, location.href).href
      this.scope.document.body.append(script)
      this.frame = frame
    }

    postMessage(data) {
      this.ready.then(() => this.scope.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
